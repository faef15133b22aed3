//! Two tenants on one cluster: one asks steadily, the other floods. What the flood is told, and what
//! the first one feels of it.

use std::fs;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::task::JoinSet;
use tonic::Code;
use tonic::transport::Channel;

use super::client::{Caller, Ended, Failure};
use super::{Memory, channel, memory::growth};
use crate::bearer::Bearer;
use crate::{Cluster, MockOptions, MockWorker, Place, Places, Times};

/// Longest that what was accepted of a flood may take to end.
const EBBED: Duration = Duration::from_secs(60);
/// Part of a flood after which memory has the size that it keeps.
const SETTLED: u32 = 3;
/// Pause between two looks at memory: five of them outlast the period in which ended jobs are forgotten.
const SAMPLE: Duration = Duration::from_secs(3);
/// Agents of each job.
const WIDTH: usize = 2;

/// Two tenants, and room for them.
#[derive(Debug, Clone, Copy)]
pub struct TenantsPlan {
    /// Mock workers.
    pub workers: usize,
    /// Agents that each decodes side by side.
    pub sequences: u32,
    /// Tokens a second of an attempt; a job takes twelve.
    pub rate: f64,
    /// Clients of the steady tenant: each has one job at a time, and waits for its answer.
    pub steady: usize,
    /// Clients of the one that floods: each submits without a pause, and waits only when it is told to.
    pub flood: usize,
    /// Agents that the flood may run.
    pub running_agents: u32,
    /// Jobs that it may have at a time.
    pub live_jobs: u32,
}

impl TenantsPlan {
    /// So many clients flood. The steady tenant asks for a quarter of the room, a flood may have half.
    pub fn flood(clients: usize) -> TenantsPlan {
        TenantsPlan {
            workers: 4,
            sequences: 32,
            rate: 16.0,
            steady: 16,
            flood: clients,
            running_agents: 64,
            live_jobs: 128,
        }
    }

    /// Jobs a second that the flood's quota lets through, if nothing else slows them.
    pub fn room(&self) -> f64 {
        f64::from(self.running_agents) / WIDTH as f64 * self.rate / 12.0
    }
}

/// A cluster with two tenants.
pub struct Tenants {
    plan: TenantsPlan,
    cluster: Cluster,
    _mocks: Vec<MockWorker>,
    channels: Vec<Channel>,
    turn: usize,
    /// Holds the quotas file.
    _folder: TempDir,
}

/// What the steady tenant met.
#[derive(Debug, Default)]
pub struct Steady {
    /// From a submission's first byte to its answer.
    pub answer: Times,
    /// Its submissions that were refused.
    pub refused: usize,
    /// What went wrong, which nothing should.
    pub failures: Vec<Failure>,
    /// How long it asked.
    pub took: Duration,
}

/// What the flood met.
#[derive(Debug, Default)]
pub struct Flood {
    /// From a submission's first byte to its acknowledgement.
    pub accepted: Times,
    /// From there to its refusal for the quota, with a hint.
    pub refused: Times,
    /// Any other refusal.
    pub failures: Vec<Failure>,
    /// How long it lasted.
    pub took: Duration,
    /// Memory of each coordinator, again and again once it had settled.
    pub memory: Vec<Vec<Memory>>,
}

impl Flood {
    /// Submissions a second, refused ones included.
    pub fn offered(&self) -> f64 {
        (self.accepted.len() + self.refused.len()) as f64 / self.took.as_secs_f64()
    }

    /// Allocated memory at the end as a share of what it was, of the coordinator where it grew most. What
    /// is resident goes up and down by more than ten thousand refusals could leave behind.
    pub fn growth(&self) -> f64 {
        let allocated = |memory: &Memory| memory.allocated;
        let shares = self.memory.iter().map(|series| growth(series, allocated));
        shares.fold(0.0, f64::max)
    }
}

fn tokens() -> String {
    let line = |tenant: &str, role: &str| {
        let token = format!("{tenant}-{role}-token");
        serde_json::json!({ "token": token, "tenant": tenant, "role": role }).to_string() + "\n"
    };
    [
        line("steady", "submitter"),
        line("flood", "submitter"),
        line("ops", "operator"),
        line("", "worker"),
        line("", "peer"),
    ]
    .concat()
}

impl Tenants {
    /// Three coordinators as processes, mock workers in this one.
    ///
    /// # Panics
    /// The cluster does not come up.
    pub async fn start(plan: TenantsPlan) -> Tenants {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let quotas = folder.path().join("quotas.toml");
        let text = format!(
            "[tenant.flood]\nlive_jobs = {}\nrunning_agents = {}\n",
            plan.live_jobs, plan.running_agents
        );
        fs::write(&quotas, text).expect("a quotas file");
        let mut places = Places::loopback(3, 0);
        for place in &mut places.coordinators {
            *place = Place {
                settings: format!(
                    "quotas_file = {quotas:?}\nretention_bytes = 65536\nsnapshot_every = 2000"
                ),
                ..Place::default()
            };
        }
        places.tokens = Some((tokens(), "ops-operator-token".to_owned()));
        let cluster = Cluster::start_at(places).await;
        let mock = |index: usize| MockOptions {
            max_sequences: plan.sequences,
            rate: plan.rate,
            token: Some("-worker-token".to_owned()),
            ..MockOptions::new(&format!("mock-{index}"), cluster.endpoints())
        };
        let mocks = (0..plan.workers).map(|index| MockWorker::spawn(mock(index)));
        let mocks = mocks.collect();
        cluster.until_workers(plan.workers).await;
        let channels = (0..6).map(|index| channel(&cluster.endpoints()[index % 3]));
        Tenants {
            plan,
            channels: channels.collect(),
            cluster,
            _mocks: mocks,
            turn: 0,
            _folder: folder,
        }
    }

    fn caller(&self, tenant: &str, index: usize) -> Caller {
        let mut channels = self.channels.clone();
        channels.rotate_left(index % self.channels.len());
        let bearer = Bearer::of(&format!("{tenant}-submitter-token"));
        Caller::new(channels, bearer)
    }

    /// The steady tenant asks for so long.
    pub async fn steady(&mut self, lasting: Duration) -> Steady {
        self.turn += 1;
        self.steadily(lasting).await
    }

    async fn steadily(&self, lasting: Duration) -> Steady {
        let started = Instant::now();
        let mut clients = JoinSet::new();
        for index in 0..self.plan.steady {
            let caller = self.caller("steady", index);
            let key = format!("steady-{}-{index}", self.turn);
            clients.spawn(ask(caller, key, started + lasting));
        }
        let mut all = Steady::default();
        while let Some(one) = clients.join_next().await {
            let one = one.expect("a client does not panic");
            all.answer.extend(one.answer);
            all.refused += one.refused;
            all.failures.extend(one.failures);
        }
        all.took = started.elapsed();
        all
    }

    /// The same while the other one floods.
    pub async fn flooded(&mut self, lasting: Duration) -> (Steady, Flood) {
        let started = Instant::now();
        let until = started + lasting;
        let mut clients = JoinSet::new();
        for index in 0..self.plan.flood {
            let key = format!("flood-{}-{index}", self.turn);
            clients.spawn(press(self.caller("flood", index), key, until));
        }
        self.turn += 1;
        let asking = self.steadily(lasting);
        let (steady, memory) = tokio::join!(asking, self.memory(lasting));
        let mut flood = Flood {
            memory,
            ..Flood::default()
        };
        while let Some(one) = clients.join_next().await {
            let one = one.expect("a client does not panic");
            flood.accepted.extend(one.accepted);
            flood.refused.extend(one.refused);
            flood.failures.extend(one.failures);
        }
        flood.took = started.elapsed();
        (steady, flood)
    }

    /// Waits until nothing of the flood is left.
    ///
    /// # Panics
    /// After a minute.
    pub async fn ebbed(&self) {
        let started = Instant::now();
        while self.is_busy().await {
            assert!(started.elapsed() < EBBED, "jobs of the flood do not end");
            // Jobs that nobody watches tell nobody of their end.
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Some worker still runs agents.
    async fn is_busy(&self) -> bool {
        self.cluster
            .worker_status()
            .await
            .iter()
            .any(|w| w.agents > 0)
    }

    /// The memory of each coordinator, sampled while a flood lasts.
    async fn memory(&self, lasting: Duration) -> Vec<Vec<Memory>> {
        let until = Instant::now() + lasting;
        tokio::time::sleep(lasting / SETTLED).await;
        let processes: Vec<_> = self.cluster.coordinators.iter().flatten().collect();
        let mut all = vec![Vec::new(); processes.len()];
        loop {
            for (series, process) in all.iter_mut().zip(&processes) {
                series.push(Memory::of(process).await);
            }
            if Instant::now() >= until {
                return all;
            }
            tokio::time::sleep(SAMPLE).await;
        }
    }
}

/// One job after another, each watched to its answer.
async fn ask(caller: Caller, key: String, until: Instant) -> Steady {
    let mut met = Steady::default();
    for turn in 0.. {
        if Instant::now() >= until {
            break;
        }
        let one = caller.again();
        let Ended {
            submit,
            refusals,
            answered,
        } = one.submit_and_watch(format!("{key}-{turn}"), turn).await;
        met.refused += refusals.len();
        match answered {
            Ok(answered) => met.answer.add(submit.unwrap_or_default() + answered.took),
            Err(failure) => met.failures.push(failure),
        }
    }
    met
}

/// One submission after another, without a look at what becomes of them.
async fn press(mut caller: Caller, key: String, until: Instant) -> Flood {
    let mut met = Flood::default();
    for turn in 0.. {
        if Instant::now() >= until {
            break;
        }
        let started = Instant::now();
        match caller.offer(&format!("{key}-{turn}"), turn).await {
            Ok(()) => met.accepted.add(started.elapsed()),
            Err(Failure::Later(status, after)) if status.code() == Code::ResourceExhausted => {
                met.refused.add(started.elapsed());
                let left = until.saturating_duration_since(Instant::now());
                tokio::time::sleep(after.min(left)).await;
            }
            Err(failure) => {
                met.failures.push(failure);
                break;
            }
        }
    }
    met
}
