//! NVIDIA's driver. It is looked for when a device is opened, not when the program is built or started.

use super::{DeviceError, Driver, Kernel, Memory};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use std::collections::HashMap;
use std::ffi::{CString, c_void};

/// The kernels as nvcc compiled them, on a boundary that the driver reads from.
static MODULE: &Aligned<[u8]> =
    &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/kernels.fatbin")));

#[repr(C, align(64))]
struct Aligned<T: ?Sized>(T);

/// A device of the machine, with the kernels loaded and a stream of its own.
pub struct CudarcDriver {
    name: String,
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    module: sys::CUmodule,
    functions: HashMap<Kernel, sys::CUfunction>,
}

// SAFETY: a context and what belongs to it may be used from any thread that makes it its current one, which every
// call here does.
unsafe impl Send for CudarcDriver {}
// SAFETY: as above; the driver's calls lock for themselves.
unsafe impl Sync for CudarcDriver {}

/// What a call of the driver's said, as an error of `op`.
fn failed(op: &str) -> impl FnOnce(DriverError) -> DeviceError + '_ {
    move |error| {
        let text = |found: Result<&std::ffi::CStr, _>| {
            found.map_or_else(
                |_| format!("{:?}", error.0),
                |t| t.to_string_lossy().into_owned(),
            )
        };
        DeviceError::Failed {
            op: op.to_owned(),
            message: format!(
                "{}: {}",
                text(error.error_name()),
                text(error.error_string())
            ),
        }
    }
}

/// Looks for the driver and starts it.
fn start(ordinal: usize) -> Result<(), DeviceError> {
    let no_driver = |message: String| DeviceError::NoDriver { message };
    // SAFETY: asks the dynamic linker for libcuda.
    if !unsafe { sys::is_culib_present() } {
        return Err(no_driver("libcuda.so was not found".to_owned()));
    }
    match result::init() {
        Ok(()) => Ok(()),
        Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => {
            Err(DeviceError::NoDevice { ordinal, count: 0 })
        }
        // A library that stands in for the driver, or one whose kernel module is not there or not its own.
        Err(error) => Err(no_driver(failed("cuInit")(error).to_string())),
    }
}

impl CudarcDriver {
    /// Opens device `ordinal` of those that the driver sees, and loads the kernels.
    ///
    /// # Errors
    /// [`DeviceError::NoDriver`], [`DeviceError::NoDevice`], or what the driver says: kernels do not load where it is
    /// older than CUDA 13 (580) or the device than Ampere.
    pub fn open(ordinal: usize) -> Result<CudarcDriver, DeviceError> {
        start(ordinal)?;
        let count = result::device::get_count().map_err(failed("cuDeviceGetCount"))?;
        let count = usize::try_from(count).unwrap_or(0);
        if ordinal >= count {
            return Err(DeviceError::NoDevice { ordinal, count });
        }
        let device = result::device::get(ordinal as i32).map_err(failed("cuDeviceGet"))?;
        let name = result::device::get_name(device).map_err(failed("cuDeviceGetName"))?;
        // SAFETY: the device is one that the driver gave.
        let context = unsafe { result::primary_ctx::retain(device) };
        let mut driver = CudarcDriver {
            name,
            device,
            context: context.map_err(failed("cuDevicePrimaryCtxRetain"))?,
            stream: std::ptr::null_mut(),
            module: std::ptr::null_mut(),
            functions: HashMap::new(),
        };
        driver.load()?;
        Ok(driver)
    }

    /// Makes the stream and loads the kernels. What was made before an error goes with the driver.
    fn load(&mut self) -> Result<(), DeviceError> {
        self.enter()?;
        let kind = result::stream::StreamKind::NonBlocking;
        self.stream = result::stream::create(kind).map_err(failed("cuStreamCreate"))?;
        // SAFETY: the module is what nvcc wrote.
        let module = unsafe { result::module::load_data(MODULE.0.as_ptr().cast()) };
        self.module = module.map_err(failed(
            "loading the kernels (they need driver 580 or later and a device of compute capability 8.0 or higher)",
        ))?;
        for kernel in Kernel::all() {
            let name = kernel.name();
            let c_name = CString::new(name.as_str()).expect("names of kernels hold no 0");
            // SAFETY: the module is loaded.
            let function = unsafe { result::module::get_function(self.module, c_name) };
            self.functions
                .insert(kernel, function.map_err(failed(&name))?);
        }
        Ok(())
    }

    /// Makes the device's context that of this thread.
    fn enter(&self) -> Result<(), DeviceError> {
        // SAFETY: the context is retained until the driver goes.
        unsafe { result::ctx::set_current(self.context) }.map_err(failed("cuCtxSetCurrent"))
    }
}

impl Driver for CudarcDriver {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn memory(&self) -> Result<Memory, DeviceError> {
        self.enter()?;
        let (free, total) = result::mem_get_info().map_err(failed("cuMemGetInfo"))?;
        Ok(Memory {
            free: free as u64,
            total: total as u64,
        })
    }

    fn alloc(&self, bytes: usize) -> Result<u64, DeviceError> {
        self.enter()?;
        // SAFETY: what lies there is written before it is read: the trait's promise to nobody else.
        match unsafe { result::malloc_sync(bytes) } {
            Ok(address) => Ok(address),
            Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                let free = result::mem_get_info().map_or(0, |(free, _)| free);
                Err(DeviceError::OutOfMemory { asked: bytes, free })
            }
            Err(error) => Err(failed("cuMemAlloc")(error)),
        }
    }

    fn free(&self, address: u64) {
        // Waits for the device. An error is one that a later call gives, too; there is nobody to tell it here.
        if self.enter().is_ok() {
            // SAFETY: the caller had it from `alloc`.
            let _ = unsafe { result::free_sync(address) };
        }
    }

    fn upload(&self, to: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        self.enter()?;
        // SAFETY: the caller's address; pageable bytes have been read when the call returns.
        unsafe { result::memcpy_htod_async(to, bytes, self.stream) }
            .map_err(failed("cuMemcpyHtoDAsync"))
    }

    fn download(&self, from: u64, bytes: &mut [u8]) -> Result<(), DeviceError> {
        self.enter()?;
        // SAFETY: the caller's address; the bytes are borrowed until the stream is done.
        let copied = unsafe { result::memcpy_dtoh_async(bytes, from, self.stream) };
        // Waits even after an error, so that nothing writes to the bytes later.
        let done = self.synchronize();
        copied.map_err(failed("cuMemcpyDtoHAsync"))?;
        done
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), DeviceError> {
        self.enter()?;
        // SAFETY: the caller's addresses.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream) }
            .map_err(failed("cuMemcpyDtoDAsync"))
    }

    unsafe fn launch(
        &self,
        kernel: Kernel,
        grid: [u32; 3],
        block: [u32; 3],
        shared: u32,
        args: &mut [*mut c_void],
    ) -> Result<(), DeviceError> {
        self.enter()?;
        let Some(&function) = self.functions.get(&kernel) else {
            return Err(DeviceError::Failed {
                op: kernel.name(),
                message: "the module has no such kernel".to_owned(),
            });
        };
        let (grid, block) = ((grid[0], grid[1], grid[2]), (block[0], block[1], block[2]));
        // SAFETY: the caller's promise; the driver copies the arguments before it returns.
        unsafe { result::launch_kernel(function, grid, block, shared, self.stream, args) }
            .map_err(|error| failed(&kernel.name())(error))
    }

    fn synchronize(&self) -> Result<(), DeviceError> {
        self.enter()?;
        // SAFETY: the stream is the driver's own.
        unsafe { result::stream::synchronize(self.stream) }.map_err(failed("cuStreamSynchronize"))
    }
}

impl Drop for CudarcDriver {
    fn drop(&mut self) {
        if self.enter().is_err() {
            return;
        }
        // SAFETY: each was made by this driver, and nothing else holds it: buffers hold the driver.
        unsafe {
            if !self.stream.is_null() {
                let _ = result::stream::synchronize(self.stream);
            }
            if !self.module.is_null() {
                let _ = result::module::unload(self.module);
            }
            if !self.stream.is_null() {
                let _ = result::stream::destroy(self.stream);
            }
            let _ = result::primary_ctx::release(self.device);
        }
    }
}
