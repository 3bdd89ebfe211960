//! Servers of other names that lead back here.

use super::*;

#[test]
fn nobody_asks_themselves() {
    let refused = |listen: &str, upstream: &str| {
        let at = |text: &str| text.parse().expect("an address");
        let clients = Clients { upstream: vec![at(upstream)], ..Clients::default() };
        let said = clients.rules(&[at("127.0.0.7:5399"), at(listen)]).err().map(|error| error.to_string());
        assert!(said.as_ref().is_none_or(|said| said.contains(&format!("--upstream {upstream}"))), "{said:?}");
        said.is_some()
    };
    for upstream in ["127.0.0.1:53", "127.0.0.9:53", "0.0.0.0:53"] {
        assert!(refused("0.0.0.0:53", upstream) && refused("[::]:53", upstream), "{upstream}");
    }
    assert!(refused("127.0.0.1:53", "127.0.0.1:53") && refused("127.0.0.1:53", "0.0.0.0:53"));
    assert!(refused("[::]:53", "[::1]:53") && refused("[::]:53", "[::]:53"));
    for (listen, upstream) in [
        ("0.0.0.0:53", "127.0.0.1:54"),
        ("0.0.0.0:53", "192.0.2.53:53"),
        ("0.0.0.0:53", "[::1]:53"),
        ("[::]:53", "192.0.2.53:53"),
        ("127.0.0.1:53", "127.0.0.2:53"),
    ] {
        assert!(!refused(listen, upstream), "{upstream} at {listen}");
    }
}

/// Two that pass what they do not know on to each other, as a node's resolver that is led back by a Service.
#[tokio::test]
async fn a_circle_costs_few_questions_and_is_noticed() {
    // Nobody else has these addresses.
    let free = |address: &str| {
        let tcp = std::net::TcpListener::bind((address, 0)).expect("a port");
        tcp.local_addr().expect("an address")
    };
    let (first, second) = (free("127.0.0.3"), free("127.0.0.4"));
    let serve = |at: SocketAddr, other: SocketAddr| {
        let rules = Rules {
            upstream: Some(Upstream::new(vec![other])),
            recursion: vec!["127.0.0.0/8".parse().expect("a range")],
            ..Rules::default()
        };
        let handler = handler(&model(1), rules, true);
        let server = listen(&[at], &handler, "--listen").expect("a server");
        (handler, server)
    };
    let (handler, _server) = serve(first, second);
    let (_other, _second) = serve(second, first);
    let answer = ask(&handler, "127.0.0.1:9", question("example.org", A, IN)).await.expect("an answer");
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    let asked = questions(&handler);
    assert!(asked <= 10, "{asked} questions");
    // By now each has seen its own name come back, or is refused by who has: the question itself alone is one more.
    let answer = ask(&handler, "127.0.0.1:9", question("example.com", A, IN)).await.expect("an answer");
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(questions(&handler), asked + 1);
}

/// Those on the way may write a name in another case.
#[tokio::test]
async fn our_own_question_is_known_in_any_case() {
    let other = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    let rules = Rules {
        upstream: Some(Upstream::new(vec![other.local_addr().expect("an address")])),
        recursion: vec!["127.0.0.0/8".parse().expect("a range")],
        ..Rules::default()
    };
    let handler = handler(&model(1), rules, true);
    handler.probe();
    let mut bytes = [0; 512];
    let length = timeout(Duration::from_secs(10), other.recv(&mut bytes)).await.expect("in time").expect("a probe");
    let probe = Message::from_vec(&bytes[..length]).expect("a message");
    let name = probe.queries[0].name().to_ascii().trim_end_matches('.').to_ascii_uppercase();
    let answer = ask(&handler, "127.0.0.1:9", question(&name, 16, IN)).await.expect("an answer");
    assert_eq!(answer.metadata.response_code, ResponseCode::Refused);
    let answer = ask(&handler, "127.0.0.1:9", question("example.org", A, IN)).await.expect("an answer");
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    assert!(other.try_recv(&mut bytes).is_err(), "it is left alone");
}

/// Questions that came so far.
fn questions(handler: &Handler) -> u64 {
    let mut registry = Registry::default();
    handler.register(&mut registry);
    let mut page = String::new();
    prometheus_client::encoding::text::encode(&mut page, &registry).expect("a page");
    let counts = page.lines().filter(|line| line.starts_with("dns_requests_total{"));
    counts.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}
