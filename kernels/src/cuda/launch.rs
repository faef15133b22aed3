//! Launching a kernel with arguments of the types that its signature has.

use super::{Buf, CudaKernels, DeviceError, Kernel, Plain};
use std::ffi::c_void;

/// A value that a kernel takes as it is.
pub(super) trait Argument {
    /// Where the value lies. The kernel does not write to it.
    fn place(&self) -> *mut c_void;
}

impl<T: Plain> Argument for Buf<T> {
    fn place(&self) -> *mut c_void {
        self.address_place()
    }
}

macro_rules! by_value {
    ($($ty:ty),*) => {
        $(impl Argument for $ty {
            fn place(&self) -> *mut c_void {
                std::ptr::from_ref(self).cast_mut().cast()
            }
        })*
    };
}
by_value!(u32, u64, f32, super::matrix::Tiles, super::attention::Shape);

/// The blocks of a launch and what each has.
pub(super) struct Blocks {
    pub(super) grid: [usize; 3],
    pub(super) threads: u32,
    /// Bytes of shared memory.
    pub(super) shared: usize,
}

/// Blocks in the second and third dimension of a grid: the devices' limit.
pub(super) const GRID: usize = 65_535;

/// No kernel takes more arguments.
const ARGUMENTS: usize = 12;

impl CudaKernels {
    /// Launches unless the grid is empty.
    ///
    /// # Safety
    /// As [`super::Driver::launch`].
    pub(super) unsafe fn launch(
        &self,
        kernel: Kernel,
        blocks: &Blocks,
        arguments: &[&dyn Argument],
    ) -> Result<(), DeviceError> {
        let [x, y, z] = blocks.grid;
        assert!(
            x <= i32::MAX as usize && y <= GRID && z <= GRID,
            "{}: a grid of {x} x {y} x {z} blocks",
            kernel.name()
        );
        if x * y * z == 0 {
            return Ok(());
        }
        let mut places = [std::ptr::null_mut(); ARGUMENTS];
        let places = &mut places[..arguments.len()];
        for (place, argument) in places.iter_mut().zip(arguments) {
            *place = argument.place();
        }
        let (grid, block) = ([x as u32, y as u32, z as u32], [blocks.threads, 1, 1]);
        // SAFETY: the caller's promise; every argument outlives the call.
        unsafe {
            self.driver
                .launch(kernel, grid, block, blocks.shared as u32, places)
        }
    }
}
