//! What a worker computes on: the setting, and the devices that this process has open.

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

#[cfg(feature = "cuda")]
use conclave_kernels::cuda::CudarcDriver;
use conclave_kernels::cuda::{DeviceError, Driver};
use serde::Deserialize;

use crate::model::{Device, WeakDevice};

/// What a model is computed on, as the settings name it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum DeviceKind {
    /// The processor.
    #[default]
    Cpu,
    /// The NVIDIA GPU of this number, as CUDA counts them.
    Cuda(u32),
}

/// Not the name of a device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no device is called \"{0}\"; known are cpu, cuda (the first GPU) and cuda:N (the GPU of number N, from 0)"
)]
pub struct UnknownDevice(String);

impl FromStr for DeviceKind {
    type Err = UnknownDevice;

    fn from_str(text: &str) -> Result<Self, UnknownDevice> {
        let unknown = || UnknownDevice(text.to_owned());
        match text.split_once(':') {
            None if text == "cpu" => Ok(Self::Cpu),
            None if text == "cuda" => Ok(Self::Cuda(0)),
            Some(("cuda", number)) => number.parse().map(Self::Cuda).map_err(|_| unknown()),
            _ => Err(unknown()),
        }
    }
}

impl TryFrom<String> for DeviceKind {
    type Error = UnknownDevice;

    fn try_from(text: String) -> Result<Self, UnknownDevice> {
        text.parse()
    }
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

/// Why a device cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The program was built without the code for it.
    #[error(
        "device = \"{asked}\": this build has no CUDA: build with --features cuda, or use the image conclave:{version}-cuda",
        version = env!("CARGO_PKG_VERSION")
    )]
    NotBuilt {
        /// As configured.
        asked: DeviceKind,
    },
    /// The driver, or the device, refuses.
    #[error("device = \"{asked}\": {source}")]
    Refused {
        /// As configured.
        asked: DeviceKind,
        /// Why.
        source: DeviceError,
    },
}

/// Those that somebody in this process uses: workers of a process share a device, and the weights on it.
static OPEN: Mutex<Vec<(DeviceKind, WeakDevice)>> = Mutex::new(Vec::new());

/// The device that is meant; `None`: the processor. Blocking: up to seconds.
///
/// # Errors
/// [`OpenError`].
pub fn open(asked: DeviceKind) -> Result<Option<Device>, OpenError> {
    let DeviceKind::Cuda(number) = asked else {
        return Ok(None);
    };
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    let held = open.iter().find(|(kind, _)| *kind == asked);
    if let Some(device) = held.and_then(|(_, device)| device.upgrade()) {
        return Ok(Some(device));
    }
    let device = Device::new(driver(number)?);
    open.retain(|(kind, _)| *kind != asked);
    open.push((asked, device.downgrade()));
    Ok(Some(device))
}

#[cfg(feature = "cuda")]
fn driver(number: u32) -> Result<Arc<dyn Driver>, OpenError> {
    match CudarcDriver::open(number as usize) {
        Ok(driver) => Ok(Arc::new(driver)),
        Err(source) => Err(OpenError::Refused {
            asked: DeviceKind::Cuda(number),
            source,
        }),
    }
}

#[cfg(not(feature = "cuda"))]
fn driver(number: u32) -> Result<Arc<dyn Driver>, OpenError> {
    Err(OpenError::NotBuilt {
        asked: DeviceKind::Cuda(number),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_names_and_others_are_refused_with_the_known_ones() {
        for (text, kind) in [
            ("cpu", DeviceKind::Cpu),
            ("cuda", DeviceKind::Cuda(0)),
            ("cuda:0", DeviceKind::Cuda(0)),
            ("cuda:7", DeviceKind::Cuda(7)),
        ] {
            assert_eq!(text.parse(), Ok(kind));
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        for wrong in [
            "", "gpu", "CUDA", "cpu:0", "cuda:", "cuda:-1", "cuda:x", "cuda:0:1",
        ] {
            let error = wrong.parse::<DeviceKind>().unwrap_err().to_string();
            let known = ["cpu", "cuda", "cuda:N"]
                .iter()
                .all(|name| error.contains(name));
            assert!(known && error.contains(&format!("\"{wrong}\"")), "{error}");
        }
    }

    #[test]
    fn the_processor_needs_no_driver() {
        assert!(open(DeviceKind::Cpu).unwrap().is_none());
    }

    #[cfg(feature = "cuda")]
    #[test]
    fn a_device_that_is_not_there_is_told() {
        let asked = DeviceKind::Cuda(4096);
        let error = open(asked).unwrap_err().to_string();
        assert!(error.contains("device = \"cuda:4096\": "), "{error}");
        assert!(
            error.contains("CUDA driver") || error.contains("there is no CUDA device 4096"),
            "{error}"
        );
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_build_without_cuda_says_how_to_get_one() {
        let error = open(DeviceKind::Cuda(1)).unwrap_err().to_string();
        assert!(
            error.contains("cuda:1") && error.contains("--features cuda"),
            "{error}"
        );
    }
}
