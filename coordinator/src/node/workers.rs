//! Worker sessions, on the node's loop: their words go to the leader.

use conclave_coordinator_core::{
    lead::{Moment, Sign, WORKER_BEAT_MS},
    worker::LEASE_TTL_MS,
};
use conclave_proto::v1::{NotLeader, Welcome, coordinator_message::Message as ToWorker};

use super::{
    lead::moment,
    task::{Task, unix_ms},
};
use crate::{dispatch::SessionInput, metrics};

impl Task {
    /// Something of a worker's session. Without a leader there are none.
    pub(super) fn session(&mut self, input: SessionInput) {
        let moment = moment!(self);
        let foreign = match &input {
            SessionInput::Opened { hello, .. } => self.is_foreign(&hello.cluster_id),
            _ => false,
        };
        let leader = self.leader.as_mut().filter(|leader| leader.serving());
        match (input, leader) {
            (
                SessionInput::Opened {
                    session,
                    hello,
                    outbox,
                    guard,
                },
                leader,
            ) => {
                self.sessions.open(session, &hello.worker_id, outbox, guard);
                match leader {
                    Some(_) if foreign => self.send_anew(session),
                    Some(leader) => leader.hello(session, *hello),
                    None => self.dismiss_workers(),
                }
            }
            (SessionInput::Closed { session }, leader) => {
                self.sessions.close(session);
                leader.into_iter().for_each(|leader| leader.closed(session));
            }
            (_, None) => {}
            (SessionInput::Prepared { prepared }, Some(leader)) => {
                leader.prepared(prepared, moment.now_ms);
            }
            (
                SessionInput::Finished {
                    session,
                    key,
                    incarnation,
                    result,
                },
                Some(leader),
            ) => leader.finished(session, key, incarnation, result, &moment),
            (SessionInput::Alive { session, beat }, Some(leader)) => {
                if leader.heartbeat(session, &beat, &moment) == Sign::Withheld {
                    metrics::lease_withheld();
                }
            }
            (SessionInput::Draining { session }, Some(leader)) => leader.draining(session),
        }
    }

    /// A worker that belonged to another cluster may run and hold what that one
    /// asked for: names of attempts are the same where one cluster came out of
    /// the other, what they stand for is not.
    fn is_foreign(&self, cluster_id: &str) -> bool {
        !cluster_id.is_empty() && self.identity.cluster_id() != Some(cluster_id)
    }

    /// Tells a worker whose cluster this is, and no more: it forgets the other
    /// one's attempts and says hello again.
    fn send_anew(&mut self, session: u64) {
        self.welcome(session);
        self.sessions.close(session);
    }

    /// The worker is in the state: it is told what to keep to.
    pub(super) fn welcome(&mut self, session: u64) {
        let welcome = Welcome {
            heartbeat_ms: WORKER_BEAT_MS,
            lease_ttl_ms: LEASE_TTL_MS,
            leader: self.address.clone(),
            members: self.network.addresses().into_values().collect(),
            cluster_id: self.identity.cluster_id().unwrap_or_default().to_owned(),
            came_from: self.came_from(),
        };
        self.send_in(session, ToWorker::Welcome(welcome));
    }

    /// The clusters that this one came out of, oldest first.
    fn came_from(&self) -> Vec<String> {
        let lineage = self.state.lineage().iter();
        lineage.map(|from| from.from_cluster_id.clone()).collect()
    }

    /// Tells workers where to go, and closes their sessions.
    pub(super) fn dismiss_workers(&mut self) {
        let me = self.identity.node_id();
        let leader = Some(self.leadership.leader_id)
            .filter(|id| *id != me)
            .and_then(|id| self.network.address(id))
            .unwrap_or_default();
        let members = self.network.addresses().into_values().collect();
        let message = ToWorker::NotLeader(NotLeader {
            leader,
            members,
            cluster_id: self.identity.cluster_id().unwrap_or_default().to_owned(),
        });
        self.sessions.dismiss(self.leadership.term, &message);
    }
}
