//! Every other durable file, damaged byte by byte: refused, or found missing.

mod images;

use std::fs;

use conclave_coordinator::disk::{
    blobs::{BlobError, Blobs},
    condemn,
    identity::{Identity, IdentityError},
    snapshots::{SnapshotError, Snapshots},
    write_atomically,
};
use conclave_proto::v1::SnapshotManifest;

#[test]
fn an_identity_with_any_byte_flipped_is_never_another_node() {
    let folder = tempfile::tempdir().unwrap();
    let mut identity = Identity::open(folder.path()).unwrap();
    identity.bind("0191f0a2-cluster").unwrap();
    let id = identity.node_id();
    drop(identity);
    let path = folder.path().join("identity.json");
    let bytes = fs::read(&path).unwrap();
    let mut refused = 0;
    for at in 0..bytes.len() {
        for mask in [0x01, 0x02, 0x10, 0x80, 0xff] {
            let mut damaged = bytes.clone();
            damaged[at] ^= mask;
            fs::write(&path, damaged).unwrap();
            match Identity::open(folder.path()) {
                // White space is read in more than one way.
                Ok(found) => {
                    assert_eq!(found.node_id(), id, "at {at}");
                    assert_eq!(found.cluster_id(), Some("0191f0a2-cluster"), "at {at}");
                }
                Err(error @ IdentityError::Damaged(..)) => {
                    assert!(error.to_string().contains("cluster remove"), "{error}");
                    refused += 1;
                }
                Err(IdentityError::Newer { .. }) => refused += 1,
                Err(error) => panic!("at {at}: {error}"),
            }
        }
    }
    assert!(refused > bytes.len() * 4, "{refused} of {}", bytes.len());
    for length in 0..bytes.len() {
        fs::write(&path, &bytes[..length]).unwrap();
        assert!(Identity::open(folder.path()).is_err(), "{length} bytes");
    }
}

#[test]
fn an_identity_of_the_first_builds_has_no_checksum_and_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let text = r#"{"format_version": 1, "node_id": 77, "cluster_id": "one"}"#;
    fs::write(folder.path().join("identity.json"), text).unwrap();
    assert_eq!(Identity::open(folder.path()).unwrap().node_id(), 77);
}

#[test]
fn a_condemned_folder_says_why_and_is_never_opened() {
    let folder = tempfile::tempdir().unwrap();
    drop(Identity::open(folder.path()).unwrap());
    condemn(folder.path(), "it forgot entry 7").unwrap();
    let error = Identity::open(folder.path()).unwrap_err();
    assert!(error.to_string().contains("it forgot entry 7"), "{error}");
}

#[test]
fn a_blob_with_any_byte_flipped_is_damaged_and_is_stored_anew() {
    let folder = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(folder.path()).unwrap();
    let data: Vec<u8> = (0..300_u32).flat_map(u32::to_le_bytes).collect();
    let hash = blobs.put(&data).unwrap();
    let name = hex::encode(hash);
    let path = folder.path().join("blobs").join(&name[..2]).join(&name);
    for at in 0..data.len() {
        let mut damaged = data.clone();
        damaged[at] ^= 1;
        fs::write(&path, &damaged).unwrap();
        assert!(matches!(blobs.get(&hash), Err(BlobError::Damaged(_))));
        fs::write(&path, &data[..at]).unwrap();
        assert!(matches!(blobs.get(&hash), Err(BlobError::Damaged(_))));
    }
    blobs.put(&data).unwrap();
    assert_eq!(blobs.get(&hash).unwrap(), data);
}

#[test]
fn a_snapshot_with_any_byte_flipped_is_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::open(folder.path()).unwrap();
    let state: Vec<u8> = (0..300_u32).flat_map(u32::to_le_bytes).collect();
    let manifest = SnapshotManifest {
        index: 9,
        digest: blake3::hash(&state).as_bytes().to_vec(),
        length: state.len() as u64,
        ..SnapshotManifest::default()
    };
    snapshots.put(&manifest, &state).unwrap();
    let names = images::file_names(&folder.path().join("snapshots"));
    let path = folder.path().join("snapshots").join(&names[0]);
    for at in 0..state.len() {
        let mut damaged = state.clone();
        damaged[at] ^= 0x40;
        fs::write(&path, &damaged).unwrap();
        let got = snapshots.get(&manifest);
        assert!(matches!(got, Err(SnapshotError::Damaged { .. })), "at {at}");
        let found = snapshots.find(9, &manifest.digest);
        assert!(matches!(found, Err(SnapshotError::Damaged { .. })));
    }
}

#[test]
fn a_write_that_fails_leaves_nothing_and_a_crash_only_what_a_start_removes() {
    let folder = tempfile::tempdir().unwrap();
    // A folder is in the way of the last step.
    fs::create_dir_all(folder.path().join("taken/inside")).unwrap();
    write_atomically(&folder.path().join("taken"), b"data").unwrap_err();
    assert_eq!(images::file_names(folder.path()), ["taken"]);

    let blobs = Blobs::open(folder.path()).unwrap();
    let hash = hex::encode(blobs.put(b"whole").unwrap());
    let shard = folder.path().join("blobs").join(&hash[..2]);
    fs::write(shard.join("half.1-1.tmp"), b"ha").unwrap();
    Snapshots::open(folder.path()).unwrap();
    let half = folder.path().join("snapshots/half.1-1.tmp");
    fs::write(&half, b"ha").unwrap();
    Blobs::open(folder.path()).unwrap();
    Snapshots::open(folder.path()).unwrap();
    assert_eq!(images::file_names(&shard), [hash]);
    assert!(!half.exists());
}
