//! Device memory with guards round every allocation.

use conclave_kernels::cuda::{DeviceError, Memory};
use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::collections::BTreeMap;

/// What memory holds before it is written, over and over: a NaN as f16, and twice over as f32.
const POISON: [u8; 2] = 0x7FF5u16.to_ne_bytes();
/// Bytes of a guard, and the boundary of allocations.
const GUARD: usize = 256;

/// The allocations of a device.
pub(crate) struct Heap {
    total: u64,
    used: u64,
    /// Bytes of each, by its address.
    allocations: BTreeMap<u64, usize>,
}

impl Heap {
    pub(crate) fn new(total: u64) -> Heap {
        Heap {
            total,
            used: 0,
            allocations: BTreeMap::new(),
        }
    }

    pub(crate) fn allocations(&self) -> usize {
        self.allocations.len()
    }

    pub(crate) fn memory(&self) -> Memory {
        Memory {
            free: self.total - self.used,
            total: self.total,
        }
    }

    pub(crate) fn alloc(&mut self, bytes: usize) -> Result<u64, DeviceError> {
        let free = self.total - self.used;
        if bytes as u64 > free {
            return Err(DeviceError::OutOfMemory {
                asked: bytes,
                free: free as usize,
            });
        }
        if bytes == 0 {
            return Err(failed("alloc", "nothing was asked for"));
        }
        let layout = layout(bytes);
        // SAFETY: the layout is not of size 0.
        let start = unsafe { alloc(layout) };
        if start.is_null() {
            handle_alloc_error(layout);
        }
        for (i, byte) in (0..layout.size()).zip(POISON.into_iter().cycle()) {
            // SAFETY: within the layout.
            unsafe { start.add(i).write(byte) };
        }
        let address = start as u64 + GUARD as u64;
        self.allocations.insert(address, bytes);
        self.used += bytes as u64;
        Ok(address)
    }

    pub(crate) fn free(&mut self, address: u64) -> Result<(), DeviceError> {
        let bytes = self.allocations.remove(&address);
        let bytes = bytes.ok_or_else(|| failed("free", "no allocation begins there"))?;
        self.used -= bytes as u64;
        // SAFETY: allocated with this layout, and no longer known.
        unsafe { dealloc((address as *mut u8).sub(GUARD), layout(bytes)) };
        Ok(())
    }

    /// A place that lies within an allocation.
    pub(crate) fn place(&self, address: u64, bytes: usize) -> Result<*mut u8, DeviceError> {
        let before = self.allocations.range(..=address).next_back();
        let within =
            before.is_some_and(|(start, len)| address + bytes as u64 <= start + *len as u64);
        match within {
            true => Ok(address as *mut u8),
            false => Err(failed("copy", "the bytes are not within an allocation")),
        }
    }

    /// Looks at all guards.
    pub(crate) fn check(&self) -> Result<(), String> {
        for (&address, &bytes) in &self.allocations {
            let size = layout(bytes).size();
            // SAFETY: an allocation with its guards.
            let whole =
                unsafe { std::slice::from_raw_parts((address as *const u8).sub(GUARD), size) };
            let is_poison = |from: usize, to: usize| {
                let odd = |i: usize| whole[i] != POISON[i % 2];
                !(from..to).any(odd)
            };
            if !is_poison(0, GUARD) {
                return Err(format!("wrote before an allocation of {bytes} bytes"));
            }
            if !is_poison(GUARD + bytes, size) {
                return Err(format!("wrote behind an allocation of {bytes} bytes"));
            }
        }
        Ok(())
    }
}

impl Drop for Heap {
    fn drop(&mut self) {
        // Buffers hold the device, so that this finds something only where one was forgotten.
        while let Some((&address, _)) = self.allocations.first_key_value() {
            let _ = self.free(address);
        }
    }
}

/// An allocation with its guards; the second begins right behind the bytes.
fn layout(bytes: usize) -> Layout {
    let size = GUARD + bytes + GUARD;
    Layout::from_size_align(size, GUARD).expect("a size that fits in memory")
}

fn failed(op: &str, message: &str) -> DeviceError {
    DeviceError::Failed {
        op: op.to_owned(),
        message: message.to_owned(),
    }
}
