//! Device memory that frees itself.

use super::{DeviceError, Driver};
use std::ffi::c_void;
use std::marker::PhantomData;
use std::sync::Arc;

mod sealed {
    /// A number without padding of which every bit pattern is valid.
    pub trait Sealed: Copy {}
}

/// Numbers that buffers hold.
pub trait Plain: sealed::Sealed {}

macro_rules! plain {
    ($($number:ty),*) => {
        $(impl sealed::Sealed for $number {}
        impl Plain for $number {})*
    };
}
plain!(u8, i8, u16, u32, i32, f32);

/// The bytes of numbers.
fn bytes<T: Plain>(numbers: &[T]) -> &[u8] {
    // SAFETY: plain numbers have no padding, and bytes no alignment.
    unsafe { std::slice::from_raw_parts(numbers.as_ptr().cast(), size_of_val(numbers)) }
}

/// `len` numbers in a device's memory.
pub struct Buf<T: Plain> {
    driver: Arc<dyn Driver>,
    /// 0 for a buffer of nothing.
    address: u64,
    len: usize,
    of: PhantomData<T>,
}

impl<T: Plain> Buf<T> {
    /// Allocates. What the numbers are is undefined until they are written.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`], or what the driver says.
    pub fn new(driver: &Arc<dyn Driver>, len: usize) -> Result<Buf<T>, DeviceError> {
        let address = match len {
            0 => 0,
            _ => driver.alloc(len * size_of::<T>())?,
        };
        Ok(Buf {
            driver: driver.clone(),
            address,
            len,
            of: PhantomData,
        })
    }

    /// Allocates and fills with `numbers`.
    ///
    /// # Errors
    /// As [`Buf::new`] and [`Buf::upload`].
    pub fn of(driver: &Arc<dyn Driver>, numbers: &[T]) -> Result<Buf<T>, DeviceError> {
        let mut buffer = Buf::new(driver, numbers.len())?;
        buffer.upload(numbers)?;
        Ok(buffer)
    }

    /// Numbers in the buffer.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Makes room for at least `len` numbers; what they are is undefined if there was less room before.
    ///
    /// # Errors
    /// As [`Buf::new`]; the buffer is empty then.
    pub fn ensure(&mut self, len: usize) -> Result<(), DeviceError> {
        if self.len < len {
            // First the old goes, so that both need not fit.
            self.release();
            *self = Buf::new(&self.driver, len)?;
        }
        Ok(())
    }

    /// Copies numbers to the beginning of the buffer. Panics if there are more than it holds.
    ///
    /// # Errors
    /// What the driver says.
    pub fn upload(&mut self, numbers: &[T]) -> Result<(), DeviceError> {
        self.upload_at(0, numbers)
    }

    /// Copies numbers into the buffer from index `at` on. Panics if they do not fit.
    ///
    /// # Errors
    /// What the driver says.
    pub fn upload_at(&mut self, at: usize, numbers: &[T]) -> Result<(), DeviceError> {
        let end = at + numbers.len();
        assert!(end <= self.len, "{end} numbers into {}", self.len);
        if numbers.is_empty() {
            return Ok(());
        }
        let to = self.address + (at * size_of::<T>()) as u64;
        self.driver.upload(to, bytes(numbers))
    }

    /// Copies the first numbers of the buffer, once all ops before are done; waits. Panics if there are fewer.
    ///
    /// # Errors
    /// What the driver says, of this or of an earlier op.
    pub fn download(&self, numbers: &mut [T]) -> Result<(), DeviceError> {
        self.download_at(0, numbers)
    }

    /// Copies numbers from index `at` on, as [`Buf::download`].
    ///
    /// # Errors
    /// As [`Buf::download`].
    pub fn download_at(&self, at: usize, numbers: &mut [T]) -> Result<(), DeviceError> {
        let end = at + numbers.len();
        assert!(end <= self.len, "{end} numbers of {}", self.len);
        if numbers.is_empty() {
            return Ok(());
        }
        let from = self.address + (at * size_of::<T>()) as u64;
        // SAFETY: every bit pattern of plain numbers is valid, and bytes have no alignment.
        let bytes = unsafe {
            std::slice::from_raw_parts_mut(numbers.as_mut_ptr().cast(), size_of_val(numbers))
        };
        self.driver.download(from, bytes)
    }

    /// Copies `len` numbers within the buffer, between places that do not overlap. Panics if they are not in it.
    ///
    /// # Errors
    /// What the driver says.
    pub fn copy_within(&mut self, from: usize, to: usize, len: usize) -> Result<(), DeviceError> {
        assert!(from.max(to) + len <= self.len && from.abs_diff(to) >= len);
        let at = |index: usize| self.address + (index * size_of::<T>()) as u64;
        self.driver.copy(at(from), at(to), len * size_of::<T>())
    }

    /// Where the buffer begins on the device.
    pub(super) fn address(&self) -> u64 {
        self.address
    }

    /// Where the buffer's address stands, for a kernel to take it from.
    pub(super) fn address_place(&self) -> *mut c_void {
        std::ptr::from_ref(&self.address).cast_mut().cast()
    }

    fn release(&mut self) {
        if self.address != 0 {
            self.driver.free(self.address);
        }
        (self.address, self.len) = (0, 0);
    }
}

impl<T: Plain> Drop for Buf<T> {
    fn drop(&mut self) {
        self.release();
    }
}
