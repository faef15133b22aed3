//! Idempotency keys: what each stands for, and which of them wait for nothing but their age.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use conclave_proto::v1::KeyRecord;

/// What a key stands for.
#[derive(Debug, PartialEq, Eq)]
pub struct Key {
    /// The job that it was accepted for, also once that is forgotten.
    pub job_id: Box<str>,
    /// blake3 of the request.
    pub request_digest: Box<[u8]>,
    /// Accepted, on replicated time.
    pub unix_ms: i64,
}

/// A key's own words.
type Name = Arc<str>;

/// Every key by tenant. A clone shares what it can: a snapshot of a state with a day's keys is taken
/// on the node's loop.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Keys {
    by_tenant: BTreeMap<Name, BTreeMap<Name, Arc<Key>>>,
    /// Derived: keys whose job is forgotten, the oldest first. Forgetting costs what it forgets,
    /// however many keys there are.
    orphans: BTreeSet<(i64, Name, Name)>,
    count: usize,
}

impl Keys {
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    pub(crate) fn get(&self, tenant: &str, key: &str) -> Option<&Key> {
        self.by_tenant.get(tenant)?.get(key).map(Arc::as_ref)
    }

    /// Takes a key whose job is there.
    pub(crate) fn insert(&mut self, record: KeyRecord) {
        let tenant = Name::from(record.tenant);
        let key = Arc::new(Key {
            job_id: record.job_id.into(),
            request_digest: record.request_digest.into(),
            unix_ms: record.unix_ms,
        });
        let of_tenant = self.by_tenant.entry(tenant).or_default();
        if of_tenant.insert(record.key.into(), key).is_none() {
            self.count += 1;
        }
    }

    /// This key's job is forgotten: from now on it goes by its age.
    pub(crate) fn orphan(&mut self, tenant: &str, key: &str, job_id: &str) {
        let Some((tenant, of_tenant)) = self.by_tenant.get_key_value(tenant) else {
            return;
        };
        if let Some((name, key)) = of_tenant.get_key_value(key)
            && *key.job_id == *job_id
        {
            let orphan = (key.unix_ms, tenant.clone(), name.clone());
            self.orphans.insert(orphan);
        }
    }

    /// Forgets keys without a job that were accepted at `unix_ms` or before.
    pub(crate) fn forget_until(&mut self, unix_ms: i64) {
        while let Some((accepted, tenant, name)) = self.orphans.pop_first() {
            if accepted > unix_ms {
                self.orphans.insert((accepted, tenant, name));
                return;
            }
            let Some(of_tenant) = self.by_tenant.get_mut(&tenant) else {
                continue;
            };
            self.count -= usize::from(of_tenant.remove(&name).is_some());
            if of_tenant.is_empty() {
                self.by_tenant.remove(&tenant);
            }
        }
    }

    /// A clone without what is derived, to be written: most keys of a busy day are orphans, and copying who
    /// waits costs more than copying the keys.
    pub(crate) fn to_save(&self) -> Keys {
        Keys {
            by_tenant: self.by_tenant.clone(),
            orphans: BTreeSet::new(),
            count: self.count,
        }
    }

    /// In the order of (tenant, key).
    pub(crate) fn records(&self) -> impl Iterator<Item = KeyRecord> {
        let record = |tenant: &Name, name: &Name, key: &Key| KeyRecord {
            tenant: tenant.to_string(),
            key: name.to_string(),
            request_digest: key.request_digest.to_vec(),
            job_id: key.job_id.to_string(),
            unix_ms: key.unix_ms,
        };
        self.by_tenant.iter().flat_map(move |(tenant, of_tenant)| {
            of_tenant
                .iter()
                .map(move |(name, key)| record(tenant, name, key))
        })
    }

    /// Keys as a snapshot holds them; `kept` says whether a job is there.
    pub(crate) fn from_records(records: Vec<KeyRecord>, kept: impl Fn(&str) -> bool) -> Keys {
        let mut keys = Keys::default();
        for record in records {
            let orphan = (!kept(&record.job_id)).then(|| {
                let job_id = record.job_id.clone();
                (record.tenant.clone(), record.key.clone(), job_id)
            });
            keys.insert(record);
            if let Some((tenant, key, job_id)) = orphan {
                keys.orphan(&tenant, &key, &job_id);
            }
        }
        keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &str, unix_ms: i64) -> KeyRecord {
        KeyRecord {
            tenant: "t".into(),
            key: key.into(),
            request_digest: vec![1],
            job_id: format!("job-{key}"),
            unix_ms,
        }
    }

    fn names(keys: &Keys) -> Vec<String> {
        keys.records().map(|record| record.key).collect()
    }

    #[test]
    fn keys_without_a_job_go_by_age_and_no_other() {
        let mut keys = Keys::default();
        for (key, unix_ms) in [("a", 1), ("b", 2), ("c", 3), ("d", 4)] {
            keys.insert(record(key, unix_ms));
        }
        for key in ["a", "c", "d"] {
            keys.orphan("t", key, &format!("job-{key}"));
        }
        keys.orphan("t", "b", "another");
        keys.orphan("u", "b", "job-b");
        keys.forget_until(3);
        assert_eq!(
            (names(&keys), keys.len()),
            (vec!["b".into(), "d".into()], 2)
        );
        keys.orphan("t", "b", "job-b");
        keys.forget_until(3);
        keys.forget_until(4);
        assert_eq!(keys, Keys::default(), "nothing is left of a tenant");
    }

    #[test]
    fn records_restore_what_they_came_from() {
        let mut keys = Keys::default();
        for key in ["a", "b"] {
            keys.insert(record(key, 7));
        }
        keys.orphan("t", "a", "job-a");
        let records: Vec<_> = keys.records().collect();
        let restored = Keys::from_records(records, |job| job == "job-b");
        assert_eq!(restored, keys);
    }
}
