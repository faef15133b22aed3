//! Models on a device: weights that are uploaded once a process, and a worker's steps on them.
//!
//! The bits are those of the processor's path: every op is specified by the same reference, and rows are met one by
//! one. Only tokens, positions, slots and block tables go up in a step, and the logits of sampled rows come down.

mod memory;
mod pass;

use std::fmt;
use std::sync::{Arc, Weak};

use conclave_kernels::cuda::{self, CudaKernels, DeviceError, Driver};

use super::ModelError;
use super::family::Family;
use super::llama::DeviceLlama;
pub(super) use memory::{Acts, Memory, Rows, Widths};
pub(super) use pass::{Clock, Pass};

/// A device that models are put on. Clones are the same device.
#[derive(Clone)]
pub struct Device(Arc<CudaKernels>);

/// A device that somebody else keeps.
#[derive(Clone)]
pub struct WeakDevice(Weak<CudaKernels>);

impl Device {
    /// What stands for the instruction set in a numeric class.
    pub const CLASS: &str = "cuda";

    /// The device of an open driver.
    pub fn new(driver: Arc<dyn Driver>) -> Device {
        Device(Arc::new(CudaKernels::new(driver)))
    }

    /// The device's own name, for people.
    pub fn name(&self) -> String {
        self.0.driver().name()
    }

    /// Its memory, in bytes.
    ///
    /// # Errors
    /// What the driver says.
    pub fn memory(&self) -> Result<cuda::Memory, DeviceError> {
        self.0.driver().memory()
    }

    /// The same device, not kept open.
    pub fn downgrade(&self) -> WeakDevice {
        WeakDevice(Arc::downgrade(&self.0))
    }

    pub(super) fn kernels(&self) -> &Arc<CudaKernels> {
        &self.0
    }

    /// What to say of `error`, which came when so many bytes for `what` were taken.
    pub(super) fn refusal(
        &self,
        error: DeviceError,
        what: &'static str,
        bytes: usize,
        fix: &'static str,
    ) -> ModelError {
        match error {
            DeviceError::OutOfMemory { free, .. } => self.too_small(what, bytes, free as u64, fix),
            error => ModelError::Device(error),
        }
    }

    /// That `bytes` for `what` are more than the `free` ones.
    pub(super) fn too_small(
        &self,
        what: &'static str,
        bytes: usize,
        free: u64,
        fix: &'static str,
    ) -> ModelError {
        const MIB: u64 = 1024 * 1024;
        ModelError::DeviceMemory {
            what,
            device: self.name(),
            need_mib: (bytes as u64).div_ceil(MIB),
            free_mib: free / MIB,
            fix,
        }
    }
}

impl WeakDevice {
    /// The device, if somebody still keeps it.
    pub fn upgrade(&self) -> Option<Device> {
        self.0.upgrade().map(Device)
    }
}

impl PartialEq for Device {
    fn eq(&self, other: &Device) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Device {}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Device").field(&self.name()).finish()
    }
}

/// Settings and weights of a model on a device.
pub(super) struct DeviceModel {
    device: Device,
    weight_bytes: usize,
    llama: DeviceLlama,
}

impl DeviceModel {
    /// Moves a model there. Each matrix leaves the processor's memory as soon as it is there.
    ///
    /// # Errors
    /// [`ModelError::NotOnDevice`], [`ModelError::DeviceMemory`] and [`ModelError::Device`].
    pub(super) fn upload(family: Family, device: &Device) -> Result<DeviceModel, ModelError> {
        let weight_bytes = family.weight_bytes();
        let free = device.memory()?.free;
        let fix = "use a smaller model or a larger device, or end what else uses it";
        if weight_bytes as u64 > free {
            return Err(device.too_small("the weights", weight_bytes, free, fix));
        }
        let llama = match family {
            Family::Llama(llama) => llama,
            Family::Muse(_) => {
                let architecture = "muse";
                return Err(ModelError::NotOnDevice { architecture });
            }
        };
        let llama = DeviceLlama::upload(llama, device.kernels())
            .map_err(|error| device.refusal(error, "the weights", weight_bytes, fix))?;
        Ok(DeviceModel {
            device: device.clone(),
            weight_bytes,
            llama,
        })
    }

    pub(super) fn device(&self) -> &Device {
        &self.device
    }

    pub(super) fn weight_bytes(&self) -> usize {
        self.weight_bytes
    }
}
