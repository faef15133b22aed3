//! A CUDA device that is none: the kernels of `kernels/cuda/` compiled as C++ and run on the CPU, for tests.
//!
//! A block's threads take turns at barriers and warp operations. What a device would not forgive is an error here:
//! threads of a block that wait at different barriers or end before one, warp operations with lanes missing, more
//! than 48 KiB of shared memory, writes beyond shared memory or beyond an allocation. Memory is full of NaN until it
//! is written, and so is what lies round it: what was read too early or beside a buffer shows in the results. With
//! [`Emulator::shuffled`] threads and blocks run in another order: what lacks a barrier shows there.

mod machine;
mod memory;

pub use machine::Fault;

use conclave_kernels::cuda::{DeviceError, Driver, Kernel, Memory};
use machine::Machine;
use memory::Heap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

/// Shared memory that every device gives a block, in bytes.
const SHARED: u32 = 48 << 10;
/// Threads of a block at most.
const THREADS: u32 = 1024;
/// Device memory unless said otherwise, in bytes.
const MEMORY: u64 = 8 << 30;
/// Blocks below which a launch is not worth another processor thread.
const FEW_BLOCKS: u64 = 16;

/// A device on the CPU.
pub struct Emulator {
    heap: Mutex<Heap>,
    /// Machines that no launch uses now.
    idle: Mutex<Vec<Machine>>,
    /// Other than 0: threads and blocks run in another order.
    order: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    launches: u64,
    /// The launch from which on all fail.
    failing_from: Option<u64>,
    allocations: u64,
    /// The allocation from which on all are refused.
    refusing_from: Option<u64>,
    /// What went wrong where no error could be given.
    late: Option<DeviceError>,
}

impl Emulator {
    /// A device with 8 GiB of memory.
    pub fn new() -> Arc<Emulator> {
        Emulator::with(MEMORY, 0)
    }

    /// A device with so many bytes of memory.
    pub fn with_memory(bytes: u64) -> Arc<Emulator> {
        Emulator::with(bytes, 0)
    }

    /// A device whose threads and blocks run in an order drawn from `seed`.
    pub fn shuffled(seed: u64) -> Arc<Emulator> {
        Emulator::with(MEMORY, seed | 1)
    }

    fn with(memory: u64, order: u64) -> Arc<Emulator> {
        Arc::new(Emulator {
            heap: Mutex::new(Heap::new(memory)),
            idle: Mutex::default(),
            order,
            state: Mutex::default(),
        })
    }

    /// Whether there is a kernel of this name.
    pub fn knows(name: &str) -> bool {
        machine::find(name).is_some()
    }

    /// Allocations that nobody has freed.
    pub fn allocations(&self) -> usize {
        lock(&self.heap).allocations()
    }

    /// Launches so far.
    pub fn launches(&self) -> u64 {
        lock(&self.state).launches
    }

    /// Makes every launch fail after so many more: a device that is lost.
    pub fn fail_after(&self, launches: u64) {
        let mut state = lock(&self.state);
        state.failing_from = Some(state.launches + launches);
    }

    /// Allocations so far, whether freed or not.
    pub fn allocated(&self) -> u64 {
        lock(&self.state).allocations
    }

    /// Makes the memory run out after so many more allocations.
    pub fn refuse_after(&self, allocations: u64) {
        let mut state = lock(&self.state);
        state.refusing_from = Some(state.allocations + allocations);
    }

    /// Lets launches and allocations succeed again.
    pub fn recover(&self) {
        let mut state = lock(&self.state);
        (state.failing_from, state.refusing_from) = (None, None);
    }

    /// Runs one of the kernels that the emulator must find fault with, on one block of 64 threads that write to
    /// `out`, an allocation of 64 floats.
    ///
    /// # Errors
    /// What the emulator found.
    pub fn run_fault(&self, fault: Fault, out: u64) -> Result<(), DeviceError> {
        let mut out = out;
        let arguments = &mut [(&raw mut out).cast()];
        // SAFETY: the kernels of faults.cu take one address; what they do wrong is within guards.
        unsafe { self.run(fault.name(), [1; 3], [64, 1, 1], 256, arguments) }
    }

    /// Runs a kernel by its name.
    ///
    /// # Safety
    /// As [`Driver::launch`].
    unsafe fn run(
        &self,
        name: &str,
        grid: [u32; 3],
        block: [u32; 3],
        shared: u32,
        args: &mut [*mut c_void],
    ) -> Result<(), DeviceError> {
        let failed = |message: String| DeviceError::Failed {
            op: name.to_owned(),
            message,
        };
        let entry = machine::find(name).ok_or_else(|| failed("no such kernel".to_owned()))?;
        if entry.arguments() != args.len() {
            let (takes, given) = (entry.arguments(), args.len());
            return Err(failed(format!("takes {takes} arguments, not {given}")));
        }
        if shared > SHARED {
            return Err(failed(format!(
                "{shared} bytes of shared memory, {SHARED} are the limit"
            )));
        }
        let threads = block.iter().product::<u32>();
        if threads == 0 || threads > THREADS {
            return Err(failed(format!("blocks of {threads} threads")));
        }
        let blocks: u64 = grid.iter().map(|&size| u64::from(size)).product();
        let workers = match thread::available_parallelism() {
            Ok(cores) if blocks >= FEW_BLOCKS => cores.get().min(8) as u64,
            _ => 1,
        };
        let launch = machine::Launch {
            entry,
            grid,
            block,
            shared,
            arguments: args.as_mut_ptr(),
            step: workers,
            order: self.order,
        };
        let part = |first: u64| {
            let mut machine = lock(&self.idle).pop().unwrap_or_else(Machine::new);
            // SAFETY: the caller's promise.
            let result = unsafe { machine.run(&launch, first) };
            lock(&self.idle).push(machine);
            result
        };
        let result = thread::scope(|scope| {
            let part = &part;
            let others: Vec<_> = (1..workers).map(|w| scope.spawn(move || part(w))).collect();
            let mine = part(0);
            let join = |other: thread::ScopedJoinHandle<'_, _>| match other.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            others.into_iter().map(join).fold(mine, Result::and)
        });
        result.map_err(failed)?;
        lock(&self.heap).check().map_err(failed)
    }
}

impl Driver for Emulator {
    fn name(&self) -> String {
        "CUDA emulator".to_owned()
    }

    fn memory(&self) -> Result<Memory, DeviceError> {
        Ok(lock(&self.heap).memory())
    }

    fn alloc(&self, bytes: usize) -> Result<u64, DeviceError> {
        {
            let mut state = lock(&self.state);
            state.allocations += 1;
            let allocations = state.allocations;
            if state.refusing_from.is_some_and(|from| allocations > from) {
                let (asked, free) = (bytes, 0);
                return Err(DeviceError::OutOfMemory { asked, free });
            }
        }
        lock(&self.heap).alloc(bytes)
    }

    fn free(&self, address: u64) {
        if let Err(error) = lock(&self.heap).free(address) {
            lock(&self.state).late.get_or_insert(error);
        }
    }

    fn upload(&self, to: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        let place = lock(&self.heap).place(to, bytes.len())?;
        // SAFETY: the place lies within an allocation.
        unsafe { place.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Ok(())
    }

    fn download(&self, from: u64, bytes: &mut [u8]) -> Result<(), DeviceError> {
        self.synchronize()?;
        let place = lock(&self.heap).place(from, bytes.len())?;
        // SAFETY: the place lies within an allocation.
        unsafe { place.copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), DeviceError> {
        let heap = lock(&self.heap);
        let (from, to) = (heap.place(from, bytes)?, heap.place(to, bytes)?);
        // SAFETY: both places lie within allocations.
        unsafe { to.copy_from(from, bytes) };
        Ok(())
    }

    unsafe fn launch(
        &self,
        kernel: Kernel,
        grid: [u32; 3],
        block: [u32; 3],
        shared: u32,
        args: &mut [*mut c_void],
    ) -> Result<(), DeviceError> {
        let name = kernel.name();
        {
            let mut state = lock(&self.state);
            state.launches += 1;
            let launches = state.launches;
            if state.failing_from.is_some_and(|from| launches > from) {
                return Err(DeviceError::Failed {
                    op: name,
                    message: "the device is lost, as it was told to be".to_owned(),
                });
            }
        }
        // SAFETY: the caller's promise.
        unsafe { self.run(&name, grid, block, shared, args) }
    }

    fn synchronize(&self) -> Result<(), DeviceError> {
        lock(&self.state).late.take().map_or(Ok(()), Err)
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
