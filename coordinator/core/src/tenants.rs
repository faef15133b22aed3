//! What each tenant has under way: derived from the jobs, so that a quota is a look and placement goes
//! round the tenants without a look at every job.

use std::collections::{BTreeMap, BTreeSet};

use conclave_proto::v1::AgentState;

use crate::job::Job;

/// What a tenant, or one job of it, has under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Share {
    /// Jobs that have not ended.
    pub live_jobs: u64,
    /// Agents that wait for a worker.
    pub queued_agents: u64,
    /// Agents that hold one, those that were told to stop and have not reported included.
    pub running_agents: u64,
}

/// One tenant with something under way.
#[derive(Debug, Clone, PartialEq, Default)]
struct Tenant {
    share: Share,
    /// Its jobs with agents that wait, the oldest first: ids ascend with time.
    waiting: BTreeSet<String>,
}

/// Every tenant with something under way, and what each active job adds to it.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Tenants {
    by_job: BTreeMap<String, Share>,
    by_tenant: BTreeMap<String, Tenant>,
}

impl Share {
    fn of(job: &Job) -> Share {
        let count = |wanted: fn(&crate::agent::Agent) -> bool| {
            job.agents.iter().filter(|agent| wanted(agent)).count() as u64
        };
        Share {
            live_jobs: u64::from(!job.is_final()),
            queued_agents: count(|agent| agent.state == AgentState::Queued),
            running_agents: count(|agent| agent.holds_worker()),
        }
    }

    /// Another one's is added.
    pub fn add(&mut self, other: Share) {
        self.replace(Share::default(), other);
    }

    fn is_empty(&self) -> bool {
        *self == Share::default()
    }

    fn replace(&mut self, before: Share, now: Share) {
        self.live_jobs = self.live_jobs - before.live_jobs + now.live_jobs;
        self.queued_agents = self.queued_agents - before.queued_agents + now.queued_agents;
        self.running_agents = self.running_agents - before.running_agents + now.running_agents;
    }
}

impl Tenants {
    /// The job is as it is now. A job that ended is forgotten with its last attempt, before it can be
    /// removed.
    pub(crate) fn update(&mut self, job: &Job) {
        let now = Share::of(job);
        let before = self.by_job.get(&job.id).copied().unwrap_or_default();
        if before == now {
            return;
        }
        if !self.by_tenant.contains_key(&job.tenant) {
            self.by_tenant.insert(job.tenant.clone(), Tenant::default());
        }
        if let Some(tenant) = self.by_tenant.get_mut(&job.tenant) {
            tenant.share.replace(before, now);
            match (before.queued_agents, now.queued_agents) {
                (0, 1..) => drop(tenant.waiting.insert(job.id.clone())),
                (1.., 0) => drop(tenant.waiting.remove(&job.id)),
                _ => {}
            }
            if tenant.share.is_empty() {
                self.by_tenant.remove(&job.tenant);
            }
        }
        if now.is_empty() {
            self.by_job.remove(&job.id);
        } else if let Some(share) = self.by_job.get_mut(&job.id) {
            *share = now;
        } else {
            self.by_job.insert(job.id.clone(), now);
        }
    }

    /// What this tenant has under way.
    pub(crate) fn share(&self, tenant: &str) -> Share {
        let tenant = self.by_tenant.get(tenant);
        tenant.map(|tenant| tenant.share).unwrap_or_default()
    }

    /// Every tenant that has something under way, by name.
    pub(crate) fn shares(&self) -> impl Iterator<Item = (&str, Share)> {
        let tenants = self.by_tenant.iter();
        tenants.map(|(name, tenant)| (name.as_str(), tenant.share))
    }

    /// Tenants with agents that wait: the name, what is under way, and the jobs, the oldest first.
    pub(crate) fn waiting(
        &self,
    ) -> impl Iterator<Item = (&str, Share, impl Iterator<Item = &str>)> {
        self.by_tenant
            .iter()
            .filter(|(_, tenant)| !tenant.waiting.is_empty())
            .map(|(name, tenant)| {
                let jobs = tenant.waiting.iter().map(String::as_str);
                (name.as_str(), tenant.share, jobs)
            })
    }
}

#[cfg(test)]
mod tests {
    use conclave_proto::v1::ErrorKind;

    use super::*;
    use crate::testkit::{World, choice, width};

    fn shares(world: &World) -> Vec<(&str, [u64; 3])> {
        let numbers = |s: Share| [s.live_jobs, s.queued_agents, s.running_agents];
        let shares = world.state.tenants.shares();
        shares.map(|(name, s)| (name, numbers(s))).collect()
    }

    /// The same, counted job by job.
    fn counted(world: &World) -> Vec<(&str, [u64; 3])> {
        let mut counted: BTreeMap<&str, [u64; 3]> = BTreeMap::new();
        for job in world.state.active_jobs() {
            let of = counted.entry(&job.tenant).or_default();
            of[0] += u64::from(!job.is_final());
            for agent in &job.agents {
                of[1] += u64::from(agent.state == AgentState::Queued);
                of[2] += u64::from(agent.holds_worker());
            }
        }
        counted.into_iter().filter(|(_, n)| *n != [0; 3]).collect()
    }

    #[test]
    fn what_is_under_way_follows_the_jobs() {
        let mut world = World::new();
        world.register("w1", "i1", 3);
        for (tenant, id) in [("a", "1"), ("b", "2"), ("b", "3")] {
            world.submit_as(tenant, id, &choice(width(2)));
            world.prepare(id);
            world.decide(id);
        }
        assert_eq!(shares(&world), [("a", [1, 2, 0]), ("b", [2, 4, 0])]);
        world.place();
        assert_eq!(shares(&world), counted(&world));
        world.fail("1", 1, ErrorKind::Transient);
        assert_eq!(shares(&world), counted(&world));
        world.place();
        for id in ["1", "2", "3"] {
            while !world.job(id).is_final() {
                world.all_answer(id, "yes");
                world.go(id);
                assert_eq!(shares(&world), counted(&world));
            }
        }
        assert_eq!(shares(&world), [], "nothing is left of who has nothing");
        assert_eq!(world.state.tenants, Tenants::default());
    }
}
