//! Weights on the device.

use super::{Buf, CudaKernels, DeviceError};
use crate::weights::{Activation, PackedMatrix, WeightType};

/// A weight matrix of `n` outputs by `k` inputs, in the tiles of [`PackedMatrix`].
pub struct Matrix {
    ty: WeightType,
    act: Activation,
    n: usize,
    k: usize,
    data: Buf<u8>,
    /// Bytes of a tile, and where its planes, scales and minima begin.
    parts: [usize; 4],
    two_products: bool,
}

/// The matrix as kernels take it: `Tiles` of `kernels/cuda/weights.cuh`.
#[repr(C)]
pub(super) struct Tiles {
    data: u64,
    stride: u64,
    plane: u32,
    scale: u32,
    min: u32,
    n: u32,
    k: u32,
    unused: u32,
}

impl Matrix {
    /// Copies packed weights to the device.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`], or what the driver says.
    pub fn upload(kernels: &CudaKernels, weights: &PackedMatrix) -> Result<Matrix, DeviceError> {
        let layout = weights.layout();
        let data = Buf::of(kernels.driver(), weights.packed())?;
        Ok(Matrix {
            ty: weights.weight_type(),
            act: weights.activation(),
            n: weights.n(),
            k: weights.k(),
            data,
            parts: [layout.stride, layout.plane, layout.scale, layout.min],
            two_products: layout.scales == 2 || layout.has_min,
        })
    }

    /// Outputs: rows of the matrix.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Inputs: columns of the matrix.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Device memory held, in bytes.
    pub fn bytes(&self) -> usize {
        self.data.len()
    }

    /// The type the weights had in the file.
    pub fn weight_type(&self) -> WeightType {
        self.ty
    }

    /// What inputs are rounded to.
    pub fn activation(&self) -> Activation {
        self.act
    }

    /// Whether [`CudaKernels::qmatmul`] takes inputs rounded to 8 bit.
    ///
    /// [`CudaKernels::qmatmul`]: super::CudaKernels::qmatmul
    pub fn takes_int8(&self) -> bool {
        self.act == Activation::Int8 && !self.ty.is_float()
    }

    /// Tiles of the matrix.
    pub(super) fn tiles(&self) -> usize {
        self.data.len() / self.parts[0]
    }

    /// Whether a block of 32 weights adds two products to an output: it has two scales or a minimum.
    pub(super) fn has_two_products(&self) -> bool {
        self.two_products
    }

    pub(super) fn argument(&self) -> Tiles {
        let [stride, plane, scale, min] = self.parts;
        Tiles {
            data: self.data.address(),
            stride: stride as u64,
            plane: plane as u32,
            scale: scale as u32,
            min: min as u32,
            n: self.n as u32,
            k: self.k as u32,
            unused: 0,
        }
    }
}
