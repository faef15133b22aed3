//! Clients under load: each submits, sometimes twice, reads or watches to the
//! end, sometimes cancels, and notes what it was told.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use conclave_proto::v1::{Job, JobSpec, JobState, watch_job_response::Update};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_stream::StreamExt as _;

use super::specs::{KEY, Kind};
use super::{Caller, Dice};

/// Period of a client that reads instead of watching.
const READ: Duration = Duration::from_millis(120);
/// Pause of a client that was refused.
const REFUSED: Duration = Duration::from_millis(500);
/// Longest a job may take once faults have stopped.
const ANSWER: Duration = Duration::from_secs(90);

/// A job that a coordinator acknowledged.
#[derive(Debug, Clone)]
pub struct Accepted {
    /// Its key.
    pub key: String,
    /// Its id.
    pub id: String,
    /// Index in the kinds.
    pub kind: usize,
    /// A cancel was sent.
    pub cancelled: bool,
    /// When its submission was sent.
    pub sent: Instant,
    /// When it was acknowledged.
    pub acknowledged: Instant,
    /// When its end was seen, and the job then.
    pub answered: Option<(Instant, Job)>,
}

/// What all clients share.
pub struct Shared {
    /// The way to the cluster.
    pub caller: Caller,
    kinds: Vec<Kind>,
    accepted: Mutex<Vec<Accepted>>,
    wrong: Mutex<Vec<String>>,
    stop: AtomicBool,
}

/// The clients of one scenario.
pub struct Load {
    /// What they share.
    pub shared: Arc<Shared>,
    clients: JoinSet<()>,
}

impl Load {
    /// Starts `count` clients.
    pub fn start(caller: Caller, kinds: Vec<Kind>, count: usize, seed: u64) -> Load {
        let shared = Arc::new(Shared {
            caller,
            kinds,
            accepted: Mutex::default(),
            wrong: Mutex::default(),
            stop: AtomicBool::new(false),
        });
        let mut clients = JoinSet::new();
        for client in 0..count {
            let dice = Dice::new(seed ^ ((client as u64 + 1) << 32));
            clients.spawn(run(shared.clone(), client, dice));
        }
        Load { shared, clients }
    }

    /// No new jobs; waits until each client's last one has ended.
    pub async fn finish(mut self) -> Arc<Shared> {
        self.shared.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.clients.join_next().await {
            ended.expect("a client does not panic");
        }
        self.shared
    }
}

impl Shared {
    /// All acknowledged jobs so far.
    pub fn accepted(&self) -> Vec<Accepted> {
        self.accepted.lock().expect("no holder panics").clone()
    }

    /// What clients saw that must not be.
    pub fn wrong(&self) -> Vec<String> {
        self.wrong.lock().expect("no holder panics").clone()
    }

    fn accuse(&self, what: String) {
        self.wrong.lock().expect("no holder panics").push(what);
    }

    fn update(&self, key: &str, change: impl FnOnce(&mut Accepted)) {
        let mut accepted = self.accepted.lock().expect("no holder panics");
        if let Some(job) = accepted.iter_mut().rev().find(|job| job.key == key) {
            change(job);
        }
    }

    fn stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// The spec under its key's label.
pub fn labelled(spec: &JobSpec, key: &str) -> JobSpec {
    let mut spec = spec.clone();
    spec.labels.insert(KEY.into(), key.into());
    spec
}

async fn run(shared: Arc<Shared>, client: usize, mut dice: Dice) {
    let mut turn = 0;
    while !shared.stopping() {
        turn += 1;
        let key = format!("client-{client}-job-{turn}");
        let kind = dice.below(shared.kinds.len());
        let spec = labelled(&shared.kinds[kind].spec, &key);
        let sent = Instant::now();
        let Ok(id) = shared.caller.submit(&key, &spec).await else {
            sleep(REFUSED).await;
            continue;
        };
        let job = Accepted {
            key: key.clone(),
            id: id.clone(),
            kind,
            cancelled: false,
            sent,
            acknowledged: Instant::now(),
            answered: None,
        };
        shared.accepted.lock().expect("no holder panics").push(job);
        if dice.one_in(4) {
            again(&shared, &key, &id, &spec).await;
        }
        if !shared.kinds[kind].exact && dice.one_in(3) {
            shared.update(&key, |job| job.cancelled = true);
            let _ = shared.caller.cancel(&key, &id).await;
        }
        let watches = dice.one_in(2);
        if tokio::time::timeout(ANSWER, to_its_end(&shared, &key, &id, watches))
            .await
            .is_err()
        {
            shared.accuse(format!("{key} ({id}) has not ended in {ANSWER:?}"));
        }
    }
}

/// The same submission again is the same job.
async fn again(shared: &Shared, key: &str, id: &str, spec: &JobSpec) {
    if let Ok(other) = shared.caller.submit(key, spec).await
        && other != id
    {
        shared.accuse(format!("{key}: submitted again it is {other}, not {id}"));
    }
}

async fn to_its_end(shared: &Shared, key: &str, id: &str, watches: bool) {
    loop {
        if watches {
            watch(shared, key, id).await;
        }
        if let Ok(job) = shared.caller.job(key, id).await
            && is_final(job.state())
        {
            shared.update(key, |accepted| {
                accepted.answered = Some((Instant::now(), job))
            });
            return;
        }
        // A job's end is also looked for by polling: that is what this client does.
        sleep(READ).await;
    }
}

/// Follows the events over reconnects until the last one; each comes once.
async fn watch(shared: &Shared, key: &str, id: &str) {
    let (mut cursor, mut last) = (Vec::new(), 0);
    while let Ok(mut stream) = shared.caller.watch(key, id, &cursor).await {
        while let Some(Ok(response)) = stream.next().await {
            cursor = response.cursor;
            match response.update {
                Some(Update::Event(event)) => {
                    if event.index != last + 1 {
                        let index = event.index;
                        shared.accuse(format!("{key}: event {index} was watched after {last}"));
                    }
                    last = event.index;
                }
                Some(Update::Done(_)) => return,
                _ => {}
            }
        }
        // The pause of the service config before its first retry.
        sleep(READ).await;
    }
}

/// Whether the state is final.
pub fn is_final(state: JobState) -> bool {
    matches!(
        state,
        JobState::Done | JobState::Degraded | JobState::Failed | JobState::Cancelled
    )
}
