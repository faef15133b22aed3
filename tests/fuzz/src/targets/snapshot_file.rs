//! Saved snapshots: the file of `snapshot save`, as `restore` reads it. Its frames are chained, so that
//! a changed byte is found at once: what an editor could write is tried behind digests that fit.

use conclave_coordinator::snapshot_file::{
    Chain, Contents, FORMAT_VERSION, MAGIC, SnapshotFileError, read, write_frame,
};
use conclave_coordinator_core::{State, codec, snapshot};
use conclave_proto::v1::{
    BlobRef, JobSpec, Payload, SnapshotEnd, SnapshotHeader, SnapshotItem, SnapshotPayload,
    SubmitJobCommand, command::Command as Body, payload, snapshot_item::Item,
};
use prost::Message as _;

use super::history;
use crate::{Limits, Target};

/// A file as it is, or its items, one after the other, to be chained.
pub const TARGET: Target = Target {
    name: "snapshot_file",
    run,
    seeds,
    words: &["conclave-snapshot\n", "job-1", "\x0a\x00", "\x22\x00"],
    inputs: 20_000,
    limits: Limits::SMALL,
};

fn run(input: &[u8]) {
    let _ = take(input);
    if let Some(items) = items(input) {
        let chained = chain(items);
        if let Ok(contents) = take(&chained) {
            // Read again by whoever stores the payloads: it must be the same file then.
            let again = take(&chained).expect("it was whole");
            assert_eq!(
                (again.digest, again.frames),
                (contents.digest, contents.frames)
            );
        }
    }
}

fn take(file: &[u8]) -> Result<Contents, SnapshotFileError> {
    let mut given = 0;
    let mut payload = |hash: [u8; 32], data: Vec<u8>| {
        assert_eq!(
            blake3::hash(&data).as_bytes(),
            &hash,
            "it is what it is called"
        );
        given += 1;
        Ok(())
    };
    let contents = read(file, &mut payload)?;
    assert_eq!(
        given,
        contents.state.live_blobs().len(),
        "all that the state names"
    );
    let (_, bytes) = snapshot::encode(&contents.state);
    assert!(!bytes.is_empty(), "a state that was read can be written");
    Ok(contents)
}

/// The items that the input is made of; none of them: not such an input.
fn items(mut input: &[u8]) -> Option<Vec<Item>> {
    let mut items = Vec::new();
    while !input.is_empty() {
        items.push(
            SnapshotItem::decode_length_delimited(&mut input)
                .ok()?
                .item?,
        );
    }
    (!items.is_empty()).then_some(items)
}

/// The file of these items: the manifest fits the state, and the end the number of frames.
fn chain(mut items: Vec<Item>) -> Vec<u8> {
    let mut state = Vec::new();
    for item in &items {
        if let Item::State(data) = item {
            state.extend_from_slice(data);
        }
    }
    let mut chain = Chain::default();
    let mut file = MAGIC.to_vec();
    for (at, item) in items.iter_mut().enumerate() {
        match item {
            Item::Header(SnapshotHeader {
                manifest: Some(manifest),
                ..
            }) => {
                manifest.length = state.len() as u64;
                manifest.digest = blake3::hash(&state).as_bytes().to_vec();
            }
            Item::End(end) => end.frames = at as u64,
            _ => {}
        }
        write_frame(&mut file, &chain.frame(item.clone())).expect("memory has room");
    }
    file
}

fn seeds() -> Vec<Vec<u8>> {
    let mut state = State::new();
    for (index, command) in (1..).zip(history::golden()) {
        state.apply(index, 1, &command);
    }
    let small = stream(&state, &[]);
    // And one with a payload in two parts.
    let data = JobSpec {
        model: "m".repeat(600),
        ..JobSpec::default()
    }
    .encode_to_vec();
    let blob = BlobRef {
        hash: blake3::hash(&data).as_bytes().to_vec(),
        length: data.len() as u64,
    };
    let submit = SubmitJobCommand {
        job_id: "job-9".to_owned(),
        tenant: "t".to_owned(),
        idempotency_key: "k9".to_owned(),
        spec: Some(Payload {
            body: Some(payload::Body::Blob(blob)),
        }),
        ..SubmitJobCommand::default()
    };
    let index = state.applied_index() + 1;
    state.apply(index, 1, &codec::command(Body::SubmitJob(submit)));
    vec![small, stream(&state, &data)]
}

/// The items of a snapshot, its state and its payload in parts.
fn stream(state: &State, payload: &[u8]) -> Vec<u8> {
    let (manifest, bytes) = snapshot::encode(state);
    let header = SnapshotHeader {
        format_version: FORMAT_VERSION,
        manifest: Some(manifest),
        ..SnapshotHeader::default()
    };
    let mut items = vec![Item::Header(header)];
    items.extend(bytes.chunks(2_048).map(|part| Item::State(part.to_vec())));
    let parts: Vec<_> = payload.chunks(400).collect();
    items.extend(parts.iter().enumerate().map(|(at, part)| {
        Item::Payload(SnapshotPayload {
            hash: blake3::hash(payload).as_bytes().to_vec(),
            data: part.to_vec(),
            last: at + 1 == parts.len(),
        })
    }));
    items.push(Item::End(SnapshotEnd::default()));
    let item = |item| SnapshotItem { item: Some(item) }.encode_length_delimited_to_vec();
    items.into_iter().flat_map(item).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seeds_are_whole_snapshots_once_they_are_chained() {
        for seed in seeds() {
            let items = items(&seed).expect("they are items");
            take(&chain(items)).expect("it is whole");
        }
    }
}
