//! What `CudarcDriver` makes of what NVIDIA's driver says, with a library that stands in for that one.

#![cfg(feature = "cuda")]

mod devices;

use std::sync::Arc;

use conclave_kernels::cuda::{Buf, CudarcDriver, DeviceError, Driver, Memory};

#[test]
fn what_the_driver_says_becomes_closed_errors() {
    let which = "--exact said_by_the_stand_in --ignored";
    devices::run_on_the_stand_in(&which.split(' ').collect::<Vec<_>>());
}

#[test]
#[ignore = "runs in a process of its own that finds the stand-in"]
fn said_by_the_stand_in() {
    let none = CudarcDriver::open(1).map(|_| ()).expect_err("one device");
    assert_eq!(
        none,
        DeviceError::NoDevice {
            ordinal: 1,
            count: 1
        }
    );
    let device = Arc::new(CudarcDriver::open(0).expect("the stand-in"));
    assert_eq!(device.name(), "stand-in");
    let total = 1 << 30;
    assert_eq!(device.memory(), Ok(Memory { free: total, total }));

    let driver: Arc<dyn Driver> = device.clone();
    let buffer = Buf::of(&driver, &[1.5f32, -2.0]).expect("room");
    assert_eq!(device.memory().map(|m| m.free), Ok(total - 8));
    let full = Buf::<u8>::new(&driver, 1 << 30)
        .map(|_| ())
        .expect_err("no room");
    assert_eq!(
        full,
        DeviceError::OutOfMemory {
            asked: 1 << 30,
            free: (1 << 30) - 8
        }
    );

    // Another thread has no context until a call makes it its own.
    let mut numbers = [0.0; 2];
    std::thread::scope(|scope| {
        let read = scope.spawn(|| buffer.download(&mut numbers));
        assert_eq!(read.join().expect("no panic"), Ok(()));
    });
    assert_eq!(numbers, [1.5, -2.0]);

    let beyond = device
        .upload(8, &[0; 4])
        .expect_err("no allocation")
        .to_string();
    assert!(
        beyond.starts_with("cuMemcpyHtoDAsync failed on the device: CUDA_ERROR"),
        "{beyond}"
    );
    drop(buffer);
    assert_eq!(device.memory().map(|m| m.free), Ok(total));
}
