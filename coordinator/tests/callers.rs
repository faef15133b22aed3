//! What callers may say of themselves, on the wire: deadlines that are over, and such that are none.

mod harness;

use harness::{Cluster, PATIENCE};
use tokio::net::TcpStream;
use tonic::{
    Code,
    codegen::{Bytes, http::Request},
};

/// Calls `method` by HTTP/2 alone, for clients of gRPC end such calls themselves; its message is empty, or never
/// ends.
async fn call(address: &str, method: &str, timeout: &str, ends: bool) -> Code {
    let stream = TcpStream::connect(address).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut client = client.ready().await.unwrap();
    let request = Request::post(format!("http://{address}/conclave.v1.{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-timeout", timeout)
        .body(())
        .unwrap();
    let (answer, mut message) = client.send_request(request, false).unwrap();
    message
        .send_data(
            Bytes::from_static(&[0; 5]).slice(..if ends { 5 } else { 3 }),
            ends,
        )
        .unwrap();
    let told = async {
        let answer = answer.await.unwrap();
        let (head, mut body) = answer.into_parts();
        if let Some(code) = head.headers.get("grpc-status") {
            return code.clone();
        }
        while let Some(data) = body.data().await {
            data.unwrap();
        }
        let trailers = body.trailers().await.unwrap().unwrap();
        trailers["grpc-status"].clone()
    };
    let told = tokio::time::timeout(PATIENCE, told).await.unwrap();
    connection.abort();
    Code::from_bytes(told.as_bytes())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_that_is_over_is_called_one_and_nonsense_is_refused() {
    let cluster = Cluster::new(1).await;
    let address = &cluster.members[0].address;
    for (timeout, want) in [
        ("0n", Code::DeadlineExceeded),
        ("0H", Code::DeadlineExceeded),
        ("5S", Code::Ok),
        ("99999999H", Code::Ok),
        ("123456789S", Code::InvalidArgument),
        ("-5S", Code::InvalidArgument),
        ("+5S", Code::InvalidArgument),
        ("5", Code::InvalidArgument),
        ("soon", Code::InvalidArgument),
    ] {
        let said = call(address, "Contemplation/ListJobs", timeout, true).await;
        assert_eq!(said, want, "{timeout:?}");
    }
    // A call that waits: whichever clock is first, its word is the deadline's.
    for _ in 0..20 {
        let said = call(address, "Contemplation/SubmitJob", "15m", false).await;
        assert_eq!(said, Code::DeadlineExceeded);
    }
}
