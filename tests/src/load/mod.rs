//! Many clients at once against real coordinators: what each call took, what was refused and how, and
//! whether anything hung.

mod client;
mod memory;
mod tenants;

use std::time::{Duration, Instant};

use conclave_proto::v1::ListJobsRequest;
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};

use crate::bearer::Bearer;
use crate::{Cluster, MockOptions, MockWorker, Place, Places, Times};

pub use client::{Answered, Failure};
use client::{Caller, Ended};
pub use memory::Memory;
pub use tenants::{Flood, Steady, Tenants, TenantsPlan};

/// Agents that a mock decodes side by side.
const SEQUENCES: u32 = 128;

/// Waves until connections, caches and the log have the size that they keep.
pub const SETTLED: usize = 3;
/// How much more memory the last waves may leave than the first settled ones did.
pub const GROWTH: f64 = 1.1;
/// How much slower others may be beside a disturbance: so many times, and so much for a busy machine.
const SLOWER: (u32, Duration) = (2, Duration::from_millis(1000));

/// Longest until ended jobs are forgotten.
const FORGOTTEN: Duration = Duration::from_secs(60);

/// How much load.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Clients at once; each submits a job and watches it.
    pub clients: usize,
    /// HTTP/2 connections to each coordinator, shared by the clients.
    pub connections: usize,
    /// Mock workers.
    pub workers: usize,
    /// Jobs that a coordinator takes at a time; what is beyond is refused, and comes again.
    pub max_live_jobs: usize,
    /// Bytes of ended jobs that are kept.
    pub retention_bytes: u64,
    /// Tokens a second of an attempt.
    pub rate: f64,
}

impl Plan {
    /// So many clients, three quarters of which fit at a time. About a hundred of their jobs are kept:
    /// memory beyond them is to be given back.
    pub fn crowd(clients: usize, workers: usize, connections: usize) -> Plan {
        Plan {
            clients,
            connections,
            workers,
            max_live_jobs: (clients * 3 / 4).max(1),
            retention_bytes: 64 << 10,
            rate: 100.0,
        }
    }
}

/// A cluster under load.
pub struct Bench {
    plan: Plan,
    /// The coordinators.
    pub cluster: Cluster,
    /// The workers.
    pub mocks: Vec<MockWorker>,
    channels: Vec<Channel>,
    wave: usize,
}

/// What one wave of clients met.
#[derive(Debug, Default)]
pub struct Wave {
    /// From a submission's first byte to its acknowledgement, of those that were accepted.
    pub submit: Times,
    /// From there to the job's end, as its watcher sees it: jobs whose agents ran once.
    pub answer: Times,
    /// The same of jobs that lost an attempt.
    pub answer_again: Times,
    /// From a submission's first byte to its refusal.
    pub refusal: Times,
    /// Jobs that came to their answer.
    pub answered: usize,
    /// What went wrong, which nothing should.
    pub failures: Vec<Failure>,
    /// From the first call to the last answer.
    pub took: Duration,
    /// Memory of each coordinator afterwards.
    pub memory: Vec<Memory>,
}

impl Wave {
    /// How jobs that lost nothing were slowed beside this undisturbed wave; `None` if within the bound.
    pub fn slowed(&self, undisturbed: &Wave) -> Option<String> {
        let slow = |percent: usize| {
            let (now, before) = (
                self.answer.percentile(percent),
                undisturbed.answer.percentile(percent),
            );
            let bound = before * SLOWER.0 + SLOWER.1;
            (now > bound).then(|| format!("p{percent} is {now:?}, and was {before:?}"))
        };
        slow(50).or_else(|| slow(99))
    }

    /// Several lines for a person.
    pub fn summary(&self) -> String {
        let mut text = format!(
            "{} answered in {:.1} s: {:.0} jobs/s, {} refusals, {} failures\n  submit     {}\n  answer     {}",
            self.answered,
            self.took.as_secs_f64(),
            self.answered as f64 / self.took.as_secs_f64(),
            self.refusal.len(),
            self.failures.len(),
            self.submit.summary(),
            self.answer.summary(),
        );
        if !self.answer_again.is_empty() {
            text += &format!(
                "\n  answer of {} jobs that lost an attempt  {}",
                self.answer_again.len(),
                self.answer_again.summary()
            );
        }
        if !self.refusal.is_empty() {
            text += &format!("\n  refusal    {}", self.refusal.summary());
        }
        for (index, memory) in self.memory.iter().enumerate() {
            text += &format!("\n  coordinator {index}  {}", memory.summary());
        }
        text
    }
}

impl Bench {
    /// Three coordinators as processes, mock workers in this one.
    pub async fn start(plan: Plan) -> Bench {
        let mut places = Places::loopback(3, 0);
        for place in &mut places.coordinators {
            *place = Place {
                settings: format!(
                    "max_live_jobs = {}\nretention_bytes = {}\nsnapshot_every = 5000",
                    plan.max_live_jobs, plan.retention_bytes
                ),
                ..Place::default()
            };
        }
        let cluster = Cluster::start_at(places).await;
        let mock = |index: usize| MockOptions {
            max_sequences: SEQUENCES,
            rate: plan.rate,
            ..MockOptions::new(&format!("mock-{index}"), cluster.endpoints())
        };
        let mocks: Vec<MockWorker> = (0..plan.workers)
            .map(|index| MockWorker::spawn(mock(index)))
            .collect();
        cluster.until_workers(plan.workers).await;
        let channels = (0..plan.connections * 3)
            .map(|index| channel(&cluster.endpoints()[index % 3]))
            .collect();
        Bench {
            plan,
            cluster,
            mocks,
            channels,
            wave: 0,
        }
    }

    fn caller(&self, index: usize) -> Caller {
        // A client keeps to one connection, and goes to the next when it fails.
        let mut channels = self.channels.clone();
        channels.rotate_left(index % self.channels.len());
        Caller::new(channels, Bearer::default())
    }

    /// One wave: all clients at once, each until its job is answered.
    pub async fn wave(&mut self) -> Wave {
        self.wave += 1;
        let started = Instant::now();
        let mut clients = JoinSet::new();
        for index in 0..self.plan.clients {
            let key = format!("wave-{}-{index}", self.wave);
            clients.spawn(self.caller(index).submit_and_watch(key, index as u64));
        }
        let mut wave = Wave::default();
        while let Some(ended) = clients.join_next().await {
            let Ended {
                submit,
                refusals,
                answered,
            } = ended.expect("a client does not panic");
            wave.refusal.extend(refusals);
            submit.into_iter().for_each(|took| wave.submit.add(took));
            match answered {
                Ok(Answered { took, again }) => {
                    wave.answered += 1;
                    let times = if again {
                        &mut wave.answer_again
                    } else {
                        &mut wave.answer
                    };
                    times.add(took);
                }
                Err(failure) => wave.failures.push(failure),
            }
        }
        wave.took = started.elapsed();
        wave.memory = self.memory().await;
        wave
    }

    /// Submits so many jobs and watches none; returns how many were accepted.
    pub async fn submit_only(&mut self, count: usize) -> usize {
        self.wave += 1;
        let mut clients = JoinSet::new();
        for index in 0..count {
            let key = format!("held-{}-{index}", self.wave);
            clients.spawn(self.caller(index).submit_only(key, index as u64));
        }
        let accepted = clients.join_all().await;
        accepted.iter().filter(|done| done.is_ok()).count()
    }

    /// Opens so many watches of jobs with much text, and reads nothing from them. They end when what is
    /// returned is dropped.
    ///
    /// # Errors
    /// The cluster takes no job or no watch.
    pub async fn deaf_watchers(
        &mut self,
        count: usize,
    ) -> Result<Vec<impl Sized + use<>>, Failure> {
        self.wave += 1;
        let mut watches = Vec::new();
        for index in 0..count {
            let key = format!("deaf-{}-{index}", self.wave);
            watches.push(self.caller(index).watch_deaf(key).await?);
        }
        Ok(watches)
    }

    /// Waits until the cluster has forgotten the ended jobs that it need not keep: memory is judged by what
    /// stays. It looks for them every ten seconds.
    ///
    /// # Panics
    /// After a minute.
    pub async fn until_forgotten(&self) {
        let client = self.cluster.client();
        let started = Instant::now();
        loop {
            let page = client.list(ListJobsRequest {
                page_size: 500,
                ..ListJobsRequest::default()
            });
            let page = page.await.expect("the list of jobs");
            if page.next_page_token.is_empty() {
                return;
            }
            assert!(started.elapsed() < FORGOTTEN, "ended jobs are kept");
            // Nobody is told what was forgotten.
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// Memory in the last waves as a share of that in the first settled ones, of the coordinator where it
    /// grew most: a leader's size would hide a follower's growth.
    pub fn growth(&self, waves: &[Wave]) -> f64 {
        let settled = &waves[SETTLED.min(waves.len() - 1)..];
        let of = |coordinator| {
            let memory: Vec<Memory> = settled.iter().map(|w| w.memory[coordinator]).collect();
            memory::growth(&memory, |memory| memory.resident)
        };
        (0..waves[0].memory.len()).map(of).fold(0.0, f64::max)
    }

    /// The memory of each coordinator.
    pub async fn memory(&self) -> Vec<Memory> {
        let mut all = Vec::new();
        for process in self.cluster.coordinators.iter().flatten() {
            all.push(Memory::of(process).await);
        }
        all
    }
}

fn channel(address: &str) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
    endpoint.tcp_nodelay(true).connect_lazy()
}
