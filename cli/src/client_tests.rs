//! What the client tells, and when it tries again.
use super::*;

fn with_metadata(mut status: Status, key: &'static str, value: &str) -> Status {
    status.metadata_mut().insert(key, value.parse().unwrap());
    status
}

#[test]
fn refusals_are_final_and_absences_are_not() {
    assert!(may_retry(&Status::unavailable("leader unknown")));
    assert!(may_retry(&Status::deadline_exceeded("slow")));
    assert!(!may_retry(&Status::invalid_argument("bad")));
    assert!(!may_retry(&Status::already_exists("key")));
    assert!(!may_retry(&Status::resource_exhausted("job too large")));
    assert!(may_retry(&with_metadata(
        Status::resource_exhausted("queue"),
        "retry-after-ms",
        "20"
    )));
}

#[test]
fn every_endpoint_is_tried_before_any_waiting() {
    let mut pause = Pause::new(3);
    let down = Status::unavailable("down");
    assert_eq!(pause.next(&down), Duration::ZERO);
    assert_eq!(pause.next(&down), Duration::ZERO);
    assert_eq!(pause.next(&down), FIRST_PAUSE);
    assert_eq!(pause.next(&down), FIRST_PAUSE * 2);
    for _ in 0..10 {
        pause.next(&down);
    }
    assert_eq!(pause.next(&down), LONGEST_PAUSE);
}

#[test]
fn the_servers_wait_is_honoured() {
    let mut pause = Pause::new(1);
    let busy = with_metadata(Status::unavailable("busy"), "retry-after-ms", "1500");
    assert_eq!(pause.next(&busy), Duration::from_millis(1500));
}

#[tokio::test]
async fn malformed_endpoints_are_refused_before_any_call() {
    for bad in ["localhost", "http://", "a b:1"] {
        let error = Client::new(
            &[bad.to_owned()],
            &Dial::plain(),
            None,
            Duration::from_secs(1),
        )
        .err();
        assert!(matches!(error, Some(CliError::Usage(_))), "{bad}");
    }
    assert!(
        Client::new(
            &["localhost:1".to_owned()],
            &Dial::plain(),
            None,
            Duration::from_secs(1)
        )
        .is_ok()
    );
}

#[tokio::test]
async fn a_dead_cluster_is_unavailable_within_the_timeout() {
    // Bound and dropped, so that nothing listens there.
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap().to_string();
    drop(socket);
    let client = Client::new(
        std::slice::from_ref(&address),
        &Dial::plain(),
        None,
        Duration::from_millis(300),
    )
    .unwrap();
    let message = StatusRequest {};
    let error = client
        .unary("Status", message, async |link, request| {
            link.cluster().status(request).await
        })
        .await
        .unwrap_err();
    assert_eq!(error.exit_code(), 3);
    assert!(error.to_string().contains(&address), "{error}");
    assert!(error.to_string().contains("conclave up"), "{error}");
}

#[tokio::test]
async fn what_a_server_said_outlives_that_nobody_listens_elsewhere() {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let dead = socket.local_addr().unwrap().to_string();
    drop(socket);
    let endpoints = ["127.0.0.1:1".to_owned(), dead.clone()];
    let client = Client::new(&endpoints, &Dial::plain(), None, Duration::from_millis(300)).unwrap();
    let message = StatusRequest {};
    let error = client
        .unary("Status", message, async |link, request| {
            if link.address() == dead {
                return link.cluster().status(request).await;
            }
            Err(Status::unavailable("no leader: 2 members do not answer"))
        })
        .await
        .unwrap_err();
    let text = error.to_string();
    assert!(text.contains("2 members do not answer"), "{text}");
    assert!(!text.contains("conclave up"), "{text}");
    assert!(text.contains("majority"), "{text}");
}

/// What is told of two endpoints that answer so, by turns.
async fn told_of(first: Status, second: Status) -> String {
    let endpoints = ["127.0.0.1:1".to_owned(), "127.0.0.1:2".to_owned()];
    let client = Client::new(&endpoints, &Dial::plain(), None, Duration::from_millis(200)).unwrap();
    let answers = [first, second];
    let end: Result<(), _> = client
        .unary("X", (), async |link: Link, _| {
            let second = usize::from(link.address().ends_with('2'));
            Err(answers[second].clone())
        })
        .await;
    end.unwrap_err().to_string()
}

fn blank() -> Status {
    Status::unavailable(format!("{BLANK}: create one with `conclave cluster init`"))
}

#[tokio::test]
async fn a_refusal_of_the_leaders_is_told_plainly() {
    let full = with_metadata(
        Status::resource_exhausted("the disk is nearly full (disk_reserve_bytes)"),
        "retry-after-ms",
        "20",
    );
    let text = told_of(full, Status::unavailable("no leader")).await;
    assert!(text.starts_with("X: 127.0.0.1:1: the disk"), "{text}");
    assert!(text.contains("cluster transfer"), "{text}");
}

#[tokio::test]
async fn a_blank_node_speaks_for_no_other() {
    let text = told_of(blank(), Status::unavailable("no leader")).await;
    assert!(text.contains("no leader"), "{text}");
    let text = told_of(Status::deadline_exceeded("slow"), blank()).await;
    assert!(text.contains(BLANK) && !text.contains("init"), "{text}");
    let text = told_of(blank(), blank()).await;
    assert!(text.contains("cluster init"), "{text}");
}

/// Takes connections and never says a word, like a process that was stopped.
fn stopped() -> (std::net::TcpListener, String) {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap().to_string();
    (socket, address)
}

#[tokio::test]
async fn an_endpoint_that_hangs_costs_two_seconds_and_not_the_whole_timeout() {
    let (_socket, hangs) = stopped();
    let endpoints = [hangs.clone(), "127.0.0.1:1".to_owned()];
    let client = Client::new(&endpoints, &Dial::plain(), None, Duration::from_secs(30)).unwrap();
    let began = Instant::now();
    let answer: Result<u8, _> = client
        .unary("X", (), async |link: Link, _| {
            if link.address() == hangs {
                std::future::pending::<()>().await;
            }
            Ok(Response::new(7))
        })
        .await;
    assert_eq!(answer.unwrap(), 7);
    assert!(began.elapsed() < ATTEMPT_LIMIT / 2, "{:?}", began.elapsed());
}

#[tokio::test]
async fn what_may_go_out_once_never_goes_to_an_endpoint_that_hangs() {
    let (_socket, hangs) = stopped();
    let endpoints = [hangs.clone(), "127.0.0.1:1".to_owned()];
    let client = Client::new(&endpoints, &Dial::plain(), None, Duration::from_secs(30)).unwrap();
    let answer: Result<u8, _> = client
        .once("X", (), "look", async |link: Link, _| {
            assert_ne!(
                link.address(),
                hangs,
                "it would be carried out when it wakes"
            );
            Ok(Response::new(7))
        })
        .await;
    assert_eq!(answer.unwrap(), 7);
}

#[tokio::test]
async fn an_unclear_end_is_told_as_unclear_only_where_something_may_have_been_done() {
    let once = async |status: Status| {
        let endpoints = ["127.0.0.1:1".to_owned()];
        let client = Client::new(&endpoints, &Dial::plain(), None, Duration::from_secs(2)).unwrap();
        let call = async |_: Link, _| Err::<Response<()>, _>(status.clone());
        let end = client.once("X", (), "look", call).await;
        end.unwrap_err().to_string()
    };
    let no_leader = || Status::unavailable("no leader with a quorum was found in time");
    let text = once(no_leader()).await;
    assert!(text.contains("not known"), "{text}");
    let text = once(with_metadata(no_leader(), "outcome", "none")).await;
    assert!(!text.contains("not known"), "{text}");
    assert!(
        text.contains("no leader") && text.contains("majority"),
        "{text}"
    );
}

#[tokio::test]
async fn what_no_later_try_could_mend_ends_at_once_and_says_what_to_set() {
    let endpoints = ["127.0.0.1:1".to_owned(), "127.0.0.1:2".to_owned()];
    let client = Client::new(&endpoints, &Dial::plain(), None, Duration::from_secs(30)).unwrap();
    let misfit = || {
        let why = "invalid peer certificate: UnknownIssuer";
        Status::from_error(Box::new(std::io::Error::other(why)))
    };
    let began = Instant::now();
    let call = async |_: Link, _| Err::<Response<()>, _>(misfit());
    let error = client.unary("X", (), call).await.unwrap_err();
    assert!(began.elapsed() < FIRST_PAUSE * 10, "{:?}", began.elapsed());
    assert_eq!(error.exit_code(), 2);
    let text = error.to_string();
    assert!(
        text.contains("UnknownIssuer") && text.contains("--ca"),
        "{text}"
    );
    // Another endpoint may yet be there.
    let call = async |link: Link, _| match link.address().ends_with('1') {
        true => Err(misfit()),
        false => Ok(Response::new(7)),
    };
    assert_eq!(client.unary("X", (), call).await.unwrap(), 7);
}
