//! Every field of what is replicated, with the log version that it came with. A program that does not know a
//! field drops it, and its state is another one from there on: so a field comes with a log version, and no
//! program writes it before the cluster was raised to that.

use std::collections::{BTreeMap, BTreeSet};

use conclave_proto::{FILE_DESCRIPTOR_SET, LOG_VERSION};
use prost::Message as _;
use prost_types::{DescriptorProto, FileDescriptorSet, field_descriptor_proto::Type};

/// A line a field: log version, name, number, type.
const LISTED: &str = include_str!("../golden/log_schema.txt");

/// How many fields and values came with each log version; never changed.
const CAME: [usize; LOG_VERSION as usize] = [294, 13, 0];

/// What an entry, and the state, are made of. Payloads (a job's spec, a draft) are bytes to both.
const ROOTS: [&str; 3] = ["Command", "SnapshotState", "SnapshotManifest"];

/// Fields of every message, and values of every enum, that the roots lead to.
fn fields() -> BTreeSet<String> {
    let files = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).expect("it decodes");
    let files = files
        .file
        .iter()
        .filter(|file| file.package() == "conclave.v1");
    let (mut messages, mut enums) = (BTreeMap::new(), BTreeMap::new());
    for file in files {
        messages.extend(file.message_type.iter().map(|m| (m.name().to_owned(), m)));
        enums.extend(file.enum_type.iter().map(|e| (e.name().to_owned(), e)));
    }
    let mut found = BTreeSet::new();
    let mut ahead: Vec<String> = ROOTS.map(str::to_owned).to_vec();
    let mut seen = BTreeSet::new();
    while let Some(name) = ahead.pop() {
        if !seen.insert(name.clone()) {
            continue;
        }
        if let Some(values) = enums.get(&name) {
            let value = |v: &prost_types::EnumValueDescriptorProto| {
                format!("{name}.{} {} value", v.name(), v.number())
            };
            found.extend(values.value.iter().map(value));
            continue;
        }
        let message: &DescriptorProto = messages[&name];
        for field in &message.field {
            let of = field.type_name().rsplit('.').next().unwrap_or_default();
            let kind = match field.r#type() {
                Type::Message | Type::Enum => of.to_owned(),
                plain => plain
                    .as_str_name()
                    .trim_start_matches("TYPE_")
                    .to_lowercase(),
            };
            found.insert(format!("{name}.{} {} {kind}", field.name(), field.number()));
            if !of.is_empty() {
                ahead.push(of.to_owned());
            }
        }
    }
    found
}

#[test]
fn every_replicated_field_came_with_a_log_version() {
    let listed: BTreeMap<&str, usize> = LISTED
        .lines()
        .map(|line| line.split_once(' ').expect("a version and a field"))
        .map(|(version, field)| (field, version.parse().expect("a version")))
        .collect();
    let fields = fields();
    let new: Vec<_> = fields
        .iter()
        .filter(|f| !listed.contains_key(f.as_str()))
        .collect();
    let gone: Vec<_> = listed.keys().filter(|f| !fields.contains(**f)).collect();
    assert!(
        new.is_empty() && gone.is_empty(),
        "replicas of two programs would part over these. New: a log version of their own, and its number \
         here.\n{new:#?}\nGone or changed: never.\n{gone:#?}"
    );
    let mut came = [0; LOG_VERSION as usize];
    for version in listed.values() {
        came[version - 1] += 1;
    }
    assert_eq!(came, CAME);
}
