//! Every job by its id, shared between a state and its clones.

use std::{collections::BTreeMap, sync::Arc};

use crate::job::Job;

/// Jobs by id. A clone shares them: a snapshot of a state with many ended jobs is taken on the node's
/// loop, and only those that change while it is written are copied.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Jobs(BTreeMap<String, Arc<Job>>);

impl Jobs {
    pub(crate) fn get(&self, id: &str) -> Option<&Job> {
        self.0.get(id).map(Arc::as_ref)
    }

    /// To be changed: copied first where a clone holds it, too.
    pub(crate) fn get_mut(&mut self, id: &str) -> Option<&mut Job> {
        self.0.get_mut(id).map(Arc::make_mut)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn contains_key(&self, id: &str) -> bool {
        self.0.contains_key(id)
    }

    pub(crate) fn insert(&mut self, id: String, job: Job) {
        self.0.insert(id, Arc::new(job));
    }

    pub(crate) fn remove(&mut self, id: &str) -> Option<Arc<Job>> {
        self.0.remove(id)
    }

    /// In the order of ids.
    pub(crate) fn values(&self) -> impl DoubleEndedIterator<Item = &Job> {
        self.0.values().map(Arc::as_ref)
    }
}
