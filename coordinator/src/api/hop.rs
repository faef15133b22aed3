//! One hop: a call that must be carried out by the leader, from wherever it came.

use std::{
    error::Error,
    future::Future,
    time::{Duration, Instant},
};

use tonic::{
    Code, Request, Response, Status, TimeoutExpired, metadata::MetadataMap, transport::Channel,
};

use super::{Api, LOOK_UP, NOT_LEADER, Route, convert, patience};

impl Api {
    /// Carries a unary call out on the leader: here, or one hop away. A leader
    /// that turns out not to be one is looked up again; so is one that cannot
    /// be reached if the call may be made `twice`.
    ///
    /// # Errors
    /// What `here` or the leader says, or what [`Api::route`] says; with
    /// `outcome: unknown` once the call went to a leader that did not say what
    /// became of it (law 7).
    pub async fn on_leader<T, R, H, HF, F, FF>(
        &self,
        request: Request<T>,
        twice: bool,
        here: H,
        there: F,
    ) -> Result<Response<R>, Status>
    where
        T: Clone,
        H: Fn(MetadataMap, T) -> HF,
        HF: Future<Output = Result<R, Status>>,
        F: Fn(Channel, Request<T>) -> FF,
        FF: Future<Output = Result<Response<R>, Status>>,
    {
        let longest = self.config.request_timeout();
        self.on_leader_within(longest, request, twice, here, there)
            .await
    }

    /// [`Api::on_leader`], for a call that may take `longest` where the caller
    /// says nothing else. One that goes elsewhere has a box of its own: it is far
    /// larger than what is carried out here, and would be moved with it.
    ///
    /// # Errors
    /// As [`Api::on_leader`].
    pub async fn on_leader_within<T, R, H, HF, F, FF>(
        &self,
        longest: Duration,
        request: Request<T>,
        twice: bool,
        here: H,
        there: F,
    ) -> Result<Response<R>, Status>
    where
        T: Clone,
        H: Fn(MetadataMap, T) -> HF,
        HF: Future<Output = Result<R, Status>>,
        F: Fn(Channel, Request<T>) -> FF,
        FF: Future<Output = Result<Response<R>, Status>>,
    {
        let deadline = Instant::now() + patience(request.metadata(), longest);
        let (metadata, _, message) = request.into_parts();
        let mut status = self.node.status();
        let (mut sent, mut begun) = (false, false);
        loop {
            status.mark_unchanged();
            let found = deadline.min(Instant::now() + self.config.request_timeout());
            let route = self.route(&metadata, found).await;
            let route = route.map_err(|refusal| match sent || begun {
                true => unless_known(refusal, sent),
                false => nothing_done(refusal),
            });
            let (refusal, twice) = match route? {
                Route::Here => tokio::select! {
                    biased;
                    answer = here(metadata.clone(), message.clone()) => match answer {
                        Ok(answer) => return Ok(Response::new(answer)),
                        // It handed leadership over before anything was proposed.
                        Err(refusal) => {
                            begun = true;
                            (refusal, false)
                        }
                    },
                    // It leads no more, and hears of no successor that may have done it.
                    refusal = self.cut_off() => return Err(unless_known(refusal, true)),
                },
                Route::Leader { id: asked, channel } => {
                    let wait = deadline.saturating_duration_since(Instant::now());
                    let request = self.pass_on(&metadata, message.clone(), wait);
                    let answer = tokio::select! {
                        biased;
                        answer = Box::pin(there(channel, request)) => answer.map_err(unanswered),
                        // A leader that was cut off or stopped may never answer.
                        () = self.succeeded(asked), if twice => {
                            Err(Status::unavailable("another node leads now"))
                        }
                        refusal = self.cut_off() => return Err(unless_known(refusal, true)),
                    };
                    match answer {
                        Ok(response) => return Ok(Response::new(response.into_inner())),
                        Err(refusal) => {
                            sent |= may_be_done(&refusal);
                            (refusal, twice)
                        }
                    }
                }
            };
            let again = look_again(&refusal, twice) && Instant::now() < deadline;
            if !again {
                return Err(unless_known(refusal, sent));
            }
            // Whichever is first: news of a leader, or time to try the same again.
            let _ = tokio::time::timeout(LOOK_UP, status.changed()).await;
        }
    }
}

/// A call whose time is over is CANCELLED to the transport of this side: its caller cancelled nothing, and may not
/// know what became of it (law 7).
fn unanswered(refusal: Status) -> Status {
    let mut chain = std::iter::successors(refusal.source(), |&error| error.source());
    match chain.any(|error| error.is::<TimeoutExpired>()) {
        true => Status::unavailable("the leader did not answer in time"),
        false => refusal,
    }
}

/// True if the refusal says that the leader is to be looked up again.
pub fn look_again(refusal: &Status, twice: bool) -> bool {
    if refusal.metadata().contains_key(NOT_LEADER) {
        return true;
    }
    // An own word of the leader's is for the caller.
    twice && lost(refusal) && !told(refusal)
}

/// The connection broke under the call. What the transport on this side says has a source; what a
/// leader says has none, but one that goes says UNAVAILABLE, and a proxy before it what it likes.
fn lost(refusal: &Status) -> bool {
    match refusal.code() {
        Code::Unavailable | Code::Unknown | Code::Cancelled => true,
        // HTTP/2's own codes, that of a goodbye and "enhance your calm" among them.
        Code::Internal | Code::ResourceExhausted => refusal.source().is_some(),
        _ => false,
    }
}

/// The leader said itself what became of the call: that it is unknown, or that it does not lead.
fn told(refusal: &Status) -> bool {
    let metadata = refusal.metadata();
    metadata.contains_key(NOT_LEADER) || metadata.get("outcome").is_some_and(|o| o == "unknown")
}

/// The leader said itself that the call left no trace.
fn did_nothing(refusal: &Status) -> bool {
    let outcome = refusal.metadata().get("outcome");
    outcome.is_some_and(|outcome| outcome == "none")
}

/// True if a call that was passed on and failed so may have been carried out:
/// it reached the leader, and the answer is not the leader's own word.
fn may_be_done(failure: &Status) -> bool {
    let lost = lost(failure) || failure.code() == Code::DeadlineExceeded;
    let mut chain = std::iter::successors(failure.source(), |&error| error.source());
    let reached = !chain.any(|e| e.is::<tonic::ConnectError>());
    lost && reached && !told(failure) && !did_nothing(failure)
}

/// Says that the call left no trace: nobody was found who could carry it out.
fn nothing_done(mut refusal: Status) -> Status {
    let metadata = refusal.metadata_mut();
    metadata.insert("outcome", convert::ascii("none"));
    refusal
}

/// Says that the call may have been carried out all the same, if it was `sent`:
/// whatever follows does not take it back.
fn unless_known(mut refusal: Status, sent: bool) -> Status {
    if sent {
        let metadata = refusal.metadata_mut();
        metadata.insert("outcome", convert::ascii("unknown"));
    }
    refusal
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use tokio::sync::{mpsc, watch};

    use super::*;
    use crate::api::tests::{api, status};

    #[test]
    fn only_what_may_be_done_twice_is_tried_twice() {
        let lost = Status::unavailable("connection refused");
        assert!(look_again(&lost, true));
        assert!(!look_again(&lost, false));
        // A leader that goes says so on the connection, whatever stream is opened on it meanwhile.
        assert!(look_again(&goodbye(), true));
        assert!(!look_again(&Status::internal("its own word"), true));
        let calm = Status::new(Code::ResourceExhausted, "h2 protocol error");
        assert!(!look_again(&calm, true), "a quota is the leader's word");
        let mut calm = calm;
        calm.set_source(Arc::new(std::io::Error::other("ENHANCE_YOUR_CALM")));
        assert!(look_again(&calm, true), "and this is the connection's");
        let mut unknown = Status::unavailable("may yet commit");
        unknown
            .metadata_mut()
            .insert("outcome", convert::ascii("unknown"));
        assert!(!look_again(&unknown, true));
        assert!(!look_again(&Status::not_found("no such job"), true));
    }

    #[test]
    fn a_leader_that_does_not_answer_in_time_was_not_cancelled_by_its_caller() {
        let expired = || Status::from_error(Box::new(TimeoutExpired(())));
        assert_eq!(
            expired().code(),
            Code::Cancelled,
            "the transport's own word"
        );
        let told = unanswered(expired());
        assert_eq!(told.code(), Code::Unavailable);
        assert!(may_be_done(&told), "its outcome is not known");
        let own = unanswered(Status::cancelled("the leader's own word"));
        assert_eq!(own.code(), Code::Cancelled);
    }

    /// What the transport says of a stream on a connection that was given up with NO_ERROR.
    fn goodbye() -> Status {
        let mut status = Status::internal("h2 protocol error: not a result of an error");
        status.set_source(Arc::new(std::io::Error::other("GOAWAY")));
        status
    }

    /// A call that member 2, which leads, answers so; after that no leader is found.
    async fn passed_on(failure: fn() -> Status) -> (Status, usize) {
        let node = watch::Sender::new(status());
        let (inputs, _queue) = mpsc::channel(1);
        let (api, _folder) = api(inputs, &node);
        api.network.learn(2, "127.0.0.1:9");
        let calls = Arc::new(AtomicUsize::new(0));
        let there = |_, _| {
            calls.fetch_add(1, Ordering::Relaxed);
            node.send_modify(|s| s.leader_id = 0);
            async move { Err::<Response<()>, _>(failure()) }
        };
        let here = |_, ()| async { panic!("this node does not lead") };
        let mut request = Request::new(());
        request.set_timeout(Duration::from_millis(400));
        let refusal = api.on_leader(request, true, here, there).await;
        (refusal.unwrap_err(), calls.load(Ordering::Relaxed))
    }

    #[tokio::test]
    async fn a_call_that_found_no_leader_says_that_it_did_nothing() {
        let node = watch::Sender::new(status());
        node.send_modify(|s| s.leader_id = 0);
        let (inputs, _queue) = mpsc::channel(1);
        let (api, _folder) = api(inputs, &node);
        let there = |_, _| async { panic!("nobody leads") };
        let here = |_, ()| async { panic!("this node does not lead") };
        let mut request = Request::new(());
        request.set_timeout(Duration::from_millis(400));
        let call = api.on_leader::<(), (), _, _, _, _>(request, false, here, there);
        let refusal = call.await.unwrap_err();
        assert_eq!(refusal.code(), Code::Unavailable);
        assert_eq!(refusal.metadata().get("outcome").unwrap(), "none");
        assert!(refusal.metadata().contains_key("retry-after-ms"));
    }

    #[tokio::test]
    async fn what_a_lost_leader_may_have_done_stays_unknown() {
        let unknown = |status: &Status| {
            let outcome = status.metadata().get("outcome");
            outcome.is_some_and(|outcome| outcome == "unknown")
        };
        let lost = [
            || Status::unavailable("broken pipe"),
            || Status::unknown("h2 protocol error"),
            || Status::cancelled("Timeout expired"),
            || Status::deadline_exceeded("too late"),
            goodbye,
        ];
        for failure in lost {
            let (refusal, calls) = passed_on(failure).await;
            assert_eq!(calls, 1);
            assert!(unknown(&refusal), "{refusal:?}");
        }
        let own_words = [
            || Status::invalid_argument("no model"),
            || Status::internal("its own word"),
            || convert::node_error(crate::node::NodeError::NotLeader),
            || convert::exhausted("full".to_owned(), Duration::from_secs(1)),
            // Nothing listens there: nothing was sent.
            || Status::from_error(Box::new(tonic::ConnectError("refused".into()))),
        ];
        for word in own_words {
            let (refusal, _) = passed_on(word).await;
            assert!(!unknown(&refusal), "{refusal:?}");
        }
    }
}
