//! What stands in answers, octet by octet where the library would hide it.

use super::*;

const MX: u16 = 15;
const SRV: u16 = 33;
const IXFR: u16 = 251;

/// A handler for a zone of this name and TTL, without others to ask.
fn of(model: &Model, zone: &str, ttl: u32) -> (Handler, Arc<Zones>) {
    let zones = Arc::new(Zones::default());
    zones.set(Zone::new(model, zone::Options::new(zone.to_owned(), ttl)));
    (Handler::new(Arc::clone(&zones), Rules::default()), zones)
}

async fn answered(handler: &Handler, bytes: &[u8]) -> Vec<u8> {
    handler.datagram(bytes, "192.0.2.9:9".parse().expect("an address")).await.expect("an answer")
}

fn decoded(bytes: &[u8]) -> Message {
    Message::from_vec(bytes).expect("a message")
}

fn code(bytes: &[u8]) -> u8 {
    bytes[3] & 15
}

#[tokio::test]
async fn wrong_questions_get_the_first_code_that_holds() {
    let (handler, _) = of(&model(1), "cluster.local", 5);
    assert_eq!(code(&answered(&handler, &question(NAME, IXFR, IN)).await), 5, "REFUSED");
    let mut update = question(NAME, A, IN);
    update[2] = 5 << 3 | 1;
    let answer = answered(&handler, &update).await;
    assert_eq!((code(&answer), answer[2]), (4, 0x80 | 5 << 3 | 1), "NOTIMP, with opcode and RD as they came");
    update[5] = 7;
    assert_eq!(code(&answered(&handler, &update).await), 4, "NOTIMP: what others mean by it is not known");
    let version = answered(&handler, &with_edns(question(NAME, A, 3), 1, 1232)).await;
    assert_eq!((code(&version), version[version.len() - 6]), (0, 1), "BADVERS before the class is looked at");
}

#[tokio::test]
async fn d15_negative_answers_say_how_long_they_hold() {
    let (handler, zones) = of(&model(1), "cluster.local", 77);
    let serial = zones.sizes().serial;
    for (name, kind, code) in [("none.shop.svc.cluster.local", A, 3), (NAME, MX, 0), ("1.0.9.10.in-addr.arpa", A, 3)] {
        let message = decoded(&answered(&handler, &question(name, kind, IN)).await);
        assert_eq!(u16::from(message.metadata.response_code), code, "{name}");
        assert!(message.answers.is_empty() && message.metadata.authoritative, "{name}");
        let [soa] = message.authorities.as_slice() else { panic!("{name}: {:?}", message.authorities) };
        let owner = if name.ends_with("arpa") { "in-addr.arpa." } else { "cluster.local." };
        assert_eq!((soa.name.to_ascii().as_str(), soa.ttl), (owner, 77), "{name}");
        let RData::SOA(data) = &soa.data else { panic!("{name}: {soa:?}") };
        let words = data.to_string();
        let expected = format!("ns.dns.cluster.local. hostmaster.cluster.local. {serial} 7200 1800 86400 77");
        assert_eq!(words, expected, "{name}");
    }
}

#[tokio::test]
async fn every_type_of_the_zone_is_told_apart() {
    let mut model = model(1);
    let mut addressed = model.services[&named("db")].clone();
    addressed.headless = false;
    addressed.cluster_ips = vec!["10.96.0.7".parse().expect("an address"), "fd00::7".parse().expect("an address")];
    addressed.ports = vec![crate::desired::fixture::service().ports[0].clone()];
    model.services.insert(named("web"), addressed);
    let (handler, _) = of(&model, "cluster.local", 5);
    for (name, kind, expected) in [
        ("web.shop.svc.cluster.local", 1, RecordType::A),
        ("web.shop.svc.cluster.local", 28, RecordType::AAAA),
        ("web.shop.svc.cluster.local", SRV, RecordType::SRV),
        ("7.0.96.10.in-addr.arpa", 12, RecordType::PTR),
        ("dns-version.cluster.local", 16, RecordType::TXT),
        ("cluster.local", 6, RecordType::SOA),
        ("cluster.local", 2, RecordType::NS),
    ] {
        let message = decoded(&answered(&handler, &question(name, kind, IN)).await);
        let found: Vec<_> = message.answers.iter().map(WireRecord::record_type).collect();
        assert_eq!(found, [expected], "{name}");
    }
}

/// RFC 2782: whoever reads a SRV record may not know of pointers in it.
#[tokio::test]
async fn d4_the_target_of_srv_is_written_whole() {
    let mut model = model(1);
    let name = ObjectName { namespace: "shop".to_owned(), name: "db-1".to_owned() };
    let slice = model.slices.get_mut(&name).expect("the slice");
    slice.ports = vec![crate::model::EndpointPort {
        name: "sql".to_owned(),
        protocol: crate::model::Protocol::Tcp,
        port: std::num::NonZeroU16::new(5433).expect("a port"),
    }];
    let (handler, _) = of(&model, "cluster.local", 5);
    let answer = answered(&handler, &question("_sql._tcp.db.shop.svc.cluster.local", SRV, IN)).await;
    let target = "\x0810-0-0-1\x02db\x04shop\x03svc\x07cluster\x05local\0";
    let data = [&[0, 0, 0, 100, 0x15, 0x39][..], target.as_bytes()].concat();
    assert!(answer.ends_with(&data), "priority, weight, port and target: {answer:02x?}");
}

#[tokio::test]
async fn names_are_pointed_to_in_any_case() {
    let mut model = model(1);
    alias(&mut model, "inner", "db.shop.svc.cluster.local");
    let (handler, _) = of(&model, "cluster.local", 5);
    let short = answered(&handler, &question("inner.shop.svc.cluster.local", 5, IN)).await;
    let upper = answered(&handler, &question("INNER.SHOP.SVC.CLUSTER.LOCAL", 5, IN)).await;
    assert_eq!(short.len(), upper.len());
}

#[tokio::test]
async fn d11_an_alias_stays_in_front_of_its_addresses() {
    let mut model = model(3);
    alias(&mut model, "alias", "db.shop.svc.cluster.local");
    let (handler, _) = of(&model, "cluster.local", 5);
    for _ in 0..4 {
        let message = decoded(&answered(&handler, &question("alias.shop.svc.cluster.local", A, IN)).await);
        let kinds: Vec<_> = message.answers.iter().map(WireRecord::record_type).collect();
        assert_eq!(kinds, [RecordType::CNAME, RecordType::A, RecordType::A, RecordType::A]);
    }
}

/// A zone may be so long that a name of its endpoints is none.
#[tokio::test]
async fn an_answer_that_cannot_be_written_is_a_failure() {
    let label = "x".repeat(63);
    let zone = format!("{label}.{label}.{label}.{}", "y".repeat(46));
    let (handler, _) = of(&model(1), &zone, 5);
    let name = format!("db.shop.svc.{zone}");
    assert_eq!(code(&answered(&handler, &question(&name, A, IN)).await), 0, "its addresses");
    let answer = answered(&handler, &question("1.0.0.10.in-addr.arpa", 12, IN)).await;
    assert_eq!(
        (code(&answer), answer[6..10].to_vec()),
        (2, vec![0; 4]),
        "SERVFAIL: the name of its endpoint is too long"
    );
}

#[tokio::test]
async fn over_tcp_there_is_no_limit() {
    let rules = Rules { limit: Limit::new(1, Vec::new()), ..Rules::default() };
    let handler = handler(&model(1), rules, false);
    let mut out = Vec::new();
    for _ in 0..10 {
        let client = "192.0.2.7:9".parse().expect("an address");
        assert!(matches!(handler.respond(&question(NAME, A, IN), client, Transport::Tcp, &mut out), Outcome::Answered));
        assert_eq!((out[2] & 2, out[7]), (0, 1), "whole");
    }
}

#[tokio::test]
async fn recursion_is_for_those_who_may_if_there_is_somebody_to_ask() {
    let rules =
        |upstream| Rules { upstream, recursion: vec!["127.0.0.0/8".parse().expect("a range")], ..Rules::default() };
    let alone = handler(&model(1), rules(None), false);
    let answer = ask(&alone, "127.0.0.1:9", question(NAME, A, IN)).await.expect("an answer");
    assert!(!answer.metadata.recursion_available, "nobody can be asked");
    let handler = handler(&model(1), rules(Some(Upstream::new(vec![elsewhere().await]))), true);
    let answer = ask(&handler, "[::ffff:127.0.0.1]:9", question("example.org", A, IN)).await.expect("an answer");
    assert_eq!(answer.answers.len(), 1, "an IPv4 client at a socket of both families");
}

/// Whatever others say, our own zone is not asked for.
#[tokio::test]
async fn d11_an_alias_that_ends_inside_the_zone_is_not_passed_on() {
    let mut model = model(1);
    alias(&mut model, "alias", "nobody.shop.svc.cluster.local");
    let upstream = Some(Upstream::new(vec![elsewhere().await]));
    let rules = Rules { upstream, recursion: vec!["127.0.0.0/8".parse().expect("a range")], ..Rules::default() };
    let handler = handler(&model, rules, true);
    let answer = ask(&handler, "127.0.0.1:9", question("alias.shop.svc.cluster.local", A, IN)).await;
    let answer = answer.expect("an answer");
    let kinds: Vec<_> = answer.answers.iter().map(WireRecord::record_type).collect();
    assert_eq!((kinds.as_slice(), answer.metadata.authoritative), (&[RecordType::CNAME][..], true));
}

/// A server whose every answer has so many records and an SOA, over UDP too.
async fn talkative(records: u8) -> SocketAddr {
    use hickory_proto::op::MessageType;
    let udp = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    let at = udp.local_addr().expect("an address");
    tokio::spawn(async move {
        let mut bytes = [0; 512];
        while let Ok((length, from)) = udp.recv_from(&mut bytes).await {
            let mut message = Message::from_vec(&bytes[..length]).expect("a question");
            message.metadata.message_type = MessageType::Response;
            let name = message.queries[0].name().clone();
            for last in 0..records {
                let data = RData::A(rdata::A([192, 0, 2, last].into()));
                message.add_answer(WireRecord::from_rdata(name.clone(), 60, data));
            }
            let ns = RData::NS(rdata::NS(name.clone()));
            message.authorities.push(WireRecord::from_rdata(name, 60, ns));
            udp.send_to(&message.to_vec().expect("bytes"), from).await.expect("sent");
        }
    });
    at
}

#[tokio::test]
async fn answers_of_others_come_whole_or_cut_to_what_the_client_takes() {
    let rules = |at| Rules {
        upstream: Some(Upstream::new(vec![at])),
        recursion: vec!["127.0.0.0/8".parse().expect("a range")],
        ..Rules::default()
    };
    let short = handler(&model(1), rules(talkative(1).await), true);
    let answer = ask(&short, "127.0.0.1:9", question("example.org", A, IN)).await.expect("an answer");
    assert_eq!((answer.answers.len(), answer.authorities.len()), (1, 1));
    let long = handler(&model(1), rules(talkative(60).await), true);
    let client = "127.0.0.1:9".parse().expect("an address");
    let bytes = long.datagram(&question("example.org", A, IN), client).await.expect("an answer");
    assert!(bytes.len() <= 512 && bytes[2] & 2 == 2, "{} octets, truncated", bytes.len());
}

#[test]
fn a_new_zone_goes_on_with_the_serial_of_the_one_before() {
    let zones = Zones::default();
    let zone = || Zone::new(&model(1), zone::Options::new("cluster.local".to_owned(), 5));
    zones.set(zone());
    let first = zones.sizes().serial;
    for _ in 0..3 {
        zones.set(zone());
    }
    assert!(zones.sizes().serial >= first + 3);
}

#[tokio::test]
async fn questions_are_counted_by_protocol_family_and_type() {
    let (handler, _) = of(&model(1), "cluster.local", 5);
    let mut out = Vec::new();
    for (client, over, kind) in [
        ("192.0.2.1:9", Transport::Udp, A),
        ("[::ffff:192.0.2.1]:9", Transport::Udp, 28),
        ("[2001:db8::1]:9", Transport::Tcp, MX),
        ("192.0.2.1:9", Transport::Tcp, 60_000),
        ("192.0.2.1:9", Transport::Tcp, 60_001),
    ] {
        handler.respond(&question(NAME, kind, IN), client.parse().expect("an address"), over, &mut out);
    }
    let mut registry = Registry::default();
    handler.register(&mut registry);
    let mut page = String::new();
    prometheus_client::encoding::text::encode(&mut page, &registry).expect("a page");
    let mut found: Vec<_> = page.lines().filter_map(|line| line.strip_prefix("dns_requests_total")).collect();
    found.sort_unstable();
    assert_eq!(
        found,
        [
            r#"{proto="tcp",family="1",type="other"} 2"#,
            r#"{proto="tcp",family="2",type="MX"} 1"#,
            r#"{proto="udp",family="1",type="A"} 1"#,
            r#"{proto="udp",family="1",type="AAAA"} 1"#,
        ]
    );
}

#[test]
fn nobody_asks_an_address_of_this_machine_where_every_one_is_listened_on() {
    let at = |text: &str| text.parse().expect("an address");
    let here = crate::dns::Here { addresses: vec!["192.0.2.1".parse().expect("an address")] };
    assert!(here.is_at(at("0.0.0.0:53"), at("192.0.2.1:53")));
    assert!(here.is_at(at("[::]:53"), at("[::ffff:192.0.2.1]:53")));
    assert!(!here.is_at(at("0.0.0.0:53"), at("192.0.2.2:53")) && !here.is_at(at("192.0.2.2:53"), at("192.0.2.1:53")));
}
