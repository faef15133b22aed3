use conclave_proto::v1::{
    CreateCluster, JobSpec, Payload, SubmitJobCommand, command::Command as Body, payload::Body as P,
};
use prost::Message as _;

use super::*;

/// A state with one job whose spec is a payload, and that payload.
fn state() -> (State, Vec<u8>) {
    let data = JobSpec {
        model: "m".repeat(CHUNK + 100),
        ..JobSpec::default()
    }
    .encode_to_vec();
    let spec = Payload {
        body: Some(P::Blob(conclave_proto::v1::BlobRef {
            hash: blake3::hash(&data).as_bytes().to_vec(),
            length: data.len() as u64,
        })),
    };
    let create = CreateCluster {
        cluster_id: "c".to_owned(),
        signing_seed: vec![1; 32],
        salt_key: vec![2; 32],
        unix_ms: 1_700_000_000_000,
    };
    let submit = SubmitJobCommand {
        job_id: "job-1".to_owned(),
        tenant: "t".to_owned(),
        idempotency_key: "k".to_owned(),
        spec: Some(spec),
        ..SubmitJobCommand::default()
    };
    let mut state = State::new();
    for (index, body) in [Body::CreateCluster(create), Body::SubmitJob(submit)]
        .into_iter()
        .enumerate()
    {
        let command = conclave_coordinator_core::codec::command(body);
        state.apply(index as u64 + 1, 1, &command);
    }
    (state, data)
}

fn frames() -> Vec<SnapshotFrame> {
    let (state, data) = state();
    let (manifest, bytes) = snapshot::encode(&state);
    let header = SnapshotHeader {
        format_version: FORMAT_VERSION,
        manifest: Some(manifest),
        jobs: 1,
        live_jobs: 1,
        payloads: 1,
        payload_bytes: data.len() as u64,
        unix_ms: 1_700_000_000_500,
        node_id: 9,
        version: "0.1.0".to_owned(),
        public_key: vec![3; 32],
    };
    let mut chain = Chain::default();
    let mut frames = vec![chain.frame(Item::Header(header))];
    frames.extend(
        bytes
            .chunks(100)
            .map(|c| chain.frame(Item::State(c.into()))),
    );
    let hash = blake3::hash(&data).as_bytes().to_vec();
    let parts: Vec<_> = data.chunks(CHUNK).collect();
    for (i, part) in parts.iter().enumerate() {
        frames.push(chain.frame(Item::Payload(SnapshotPayload {
            hash: hash.clone(),
            data: part.to_vec(),
            last: i + 1 == parts.len(),
        })));
    }
    frames.push(chain.end());
    frames
}

fn file(frames: &[SnapshotFrame]) -> Vec<u8> {
    let mut file = MAGIC.to_vec();
    frames
        .iter()
        .for_each(|frame| write_frame(&mut file, frame).unwrap());
    file
}

fn read_all(file: &[u8]) -> Result<(Contents, Vec<Hash>), SnapshotFileError> {
    let mut payloads = Vec::new();
    let contents = read(file, &mut |hash, _| {
        payloads.push(hash);
        Ok(())
    })?;
    Ok((contents, payloads))
}

#[test]
fn what_was_saved_is_read_back() {
    let frames = frames();
    let (contents, payloads) = read_all(&file(&frames)).unwrap();
    let (saved, data) = state();
    assert_eq!(contents.state, saved);
    assert_eq!(payloads, [*blake3::hash(&data).as_bytes()]);
    assert_eq!(contents.digest.to_vec(), frames.last().unwrap().digest);
    assert_eq!(contents.frames, frames.len() as u64);
}

#[test]
fn any_changed_byte_and_any_cut_is_found() {
    let whole = file(&frames());
    // Every byte of what is not payload, and some of the payload.
    let places = (0..whole.len()).filter(|at| *at < 1_500 || at % 9_973 == 0);
    for at in places {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        assert!(read_all(&changed).is_err(), "byte {at}");
        let cut = read_all(&whole[..at]).unwrap_err();
        assert!(
            matches!(
                cut,
                SnapshotFileError::CutOff { .. } | SnapshotFileError::Foreign
            ),
            "cut at {at}: {cut}"
        );
    }
    for behind in [
        frames()[0].encode_length_delimited_to_vec(),
        vec![0xff],
        b"junk".to_vec(),
    ] {
        let mut longer = whole.clone();
        longer.extend(behind);
        assert!(matches!(
            read_all(&longer),
            Err(SnapshotFileError::Trailing { .. })
        ));
    }
}

#[test]
fn frames_that_moved_or_are_missing_are_found() {
    let frames = frames();
    for at in 0..frames.len() {
        let mut fewer = frames.clone();
        fewer.remove(at);
        assert!(read_all(&file(&fewer)).is_err(), "without {at}");
        let mut moved = frames.clone();
        moved.swap(at, (at + 1) % frames.len());
        assert!(read_all(&file(&moved)).is_err(), "{at} moved");
    }
}

#[test]
fn a_snapshot_without_a_payload_that_its_state_names_is_refused() {
    let (state, _) = state();
    let (manifest, bytes) = snapshot::encode(&state);
    let header = SnapshotHeader {
        format_version: FORMAT_VERSION,
        manifest: Some(manifest),
        ..SnapshotHeader::default()
    };
    let mut chain = Chain::default();
    let frames = [
        chain.frame(Item::Header(header)),
        chain.frame(Item::State(bytes)),
        chain.end(),
    ];
    let error = read_all(&file(&frames)).unwrap_err().to_string();
    assert!(error.contains("is not in it"), "{error}");
}

#[test]
fn what_a_later_program_saved_is_refused_before_it_is_read() {
    let first = |header| {
        let frame = Chain::default().frame(Item::Header(header));
        read_all(&file(&[frame])).unwrap_err()
    };
    let newer = first(SnapshotHeader {
        format_version: FORMAT_VERSION + 1,
        ..SnapshotHeader::default()
    });
    assert!(matches!(newer, SnapshotFileError::Newer { found: 2 }));
    let manifest = SnapshotManifest {
        log_version: conclave_proto::LOG_VERSION + 1,
        ..SnapshotManifest::default()
    };
    let newer = first(SnapshotHeader {
        format_version: FORMAT_VERSION,
        manifest: Some(manifest),
        ..SnapshotHeader::default()
    });
    assert!(matches!(newer, SnapshotFileError::State(_)), "{newer}");
}

/// The format, held to bytes: what this build reads for ever.
#[test]
fn the_file_is_written_as_it_always_was() {
    const GOLDEN: &str = include_str!("golden_v1.txt");
    assert_eq!(hex::encode(small()), GOLDEN.trim());
    let (contents, _) = read_all(&hex::decode(GOLDEN.trim()).unwrap()).unwrap();
    assert_eq!(contents.manifest.cluster_id, "c");
}

/// A file without payloads, short enough for a fixture.
fn small() -> Vec<u8> {
    let mut state = State::new();
    let create = CreateCluster {
        cluster_id: "c".to_owned(),
        signing_seed: vec![1; 32],
        salt_key: vec![2; 32],
        unix_ms: 1_700_000_000_000,
    };
    let command = conclave_coordinator_core::codec::command(Body::CreateCluster(create));
    state.apply(1, 1, &command);
    let (manifest, bytes) = snapshot::encode(&state);
    let mut chain = Chain::default();
    let header = SnapshotHeader {
        format_version: 1,
        manifest: Some(manifest),
        jobs: 0,
        live_jobs: 0,
        payloads: 0,
        payload_bytes: 0,
        unix_ms: 1_700_000_000_500,
        node_id: 9,
        version: "0.1.0".to_owned(),
        public_key: vec![3; 32],
    };
    file(&[
        chain.frame(Item::Header(header)),
        chain.frame(Item::State(bytes)),
        chain.end(),
    ])
}
