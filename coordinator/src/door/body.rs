//! What bodies of calls may hold: a message that does not arrive has so long, an answer that lasts a seat.

use std::{
    future::Future as _,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use http_body::{Frame, SizeHint};
use http_body_util::BodyExt as _;
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Sleep, sleep},
};
use tonic::{Status, body::Body, codegen::Bytes};

/// How long the one message of a call may take to be here. The largest, 4 MiB unless set otherwise, passes in that
/// time at 1.2 Mbit/s.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A request's body that ends in time, or with DEADLINE_EXCEEDED.
pub struct Timely {
    inner: Body,
    until: Pin<Box<Sleep>>,
}

impl Timely {
    /// `inner`, which has `patience` from now on.
    pub fn new(inner: Body, patience: Duration) -> Self {
        let until = Box::pin(sleep(patience));
        Self { inner, until }
    }
}

impl http_body::Body for Timely {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(cx) {
            return Poll::Ready(frame);
        }
        let late = || Status::deadline_exceeded("the request's message did not arrive in time");
        self.until.as_mut().poll(cx).map(|()| Some(Err(late())))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// An answer's body that holds `seat` until it is dropped.
pub fn seated(body: Body, seat: OwnedSemaphorePermit) -> Body {
    Body::new(body.map_frame(move |frame| {
        let _held = &seat;
        frame
    }))
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use http_body::Body as _;
    use tonic::Code;

    use super::*;

    /// A body of `pieces` that says nothing more after them, and does not end.
    struct Stuck(Vec<&'static [u8]>);

    impl http_body::Body for Stuck {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            match self.0.pop() {
                Some(piece) => Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(piece))))),
                None => Poll::Pending,
            }
        }
    }

    #[tokio::test]
    async fn a_message_that_stays_away_ends_its_call() {
        let stuck = Stuck(vec![b"the first half"]);
        let mut body = Timely::new(Body::new(stuck), Duration::from_millis(10));
        let mut frame = async || {
            let frame = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx));
            frame.await.expect("it does not end by itself")
        };
        frame().await.expect("what is here is passed on");
        let late = frame().await.expect_err("the rest");
        assert_eq!(late.code(), Code::DeadlineExceeded, "{late}");
    }
}
