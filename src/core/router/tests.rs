use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use proptest::prelude::*;
use tokio::time::{Instant, timeout};

use super::*;
use crate::types::topic::TopicName;

type Model = BTreeMap<(TopicFilter, u64), u32>;
type Numbers = Router<u64, u32>;

fn name(text: &str) -> TopicName {
    text.parse().unwrap()
}

fn insert(filter: &str, key: u64, value: u32) -> Change<u64, u32> {
    Change::Insert { filter: filter.parse().unwrap(), key, value }
}

fn remove(filter: &str, key: u64) -> Change<u64, u32> {
    Change::Remove { filter: filter.parse().unwrap(), key }
}

fn routed(snapshot: &Snapshot<u64, u32>, topic: &TopicName) -> Vec<(u64, u32)> {
    let mut targets = Vec::new();
    snapshot.matches(topic, &mut |key, value| targets.push((*key, *value)));
    targets.sort_unstable();
    targets
}

fn expected(model: &Model, topic: &TopicName) -> Vec<(u64, u32)> {
    let matching = model.iter().filter(|((filter, _), _)| filter.matches(topic));
    let mut targets: Vec<_> = matching.map(|((_, key), value)| (*key, *value)).collect();
    targets.sort_unstable();
    targets
}

/// How many nodes a trie of these filters has: one per different beginning of levels.
fn nodes(model: &Model) -> usize {
    let mut beginnings = BTreeSet::new();
    for (filter, _) in model.keys() {
        let levels: Vec<_> = filter.levels().filter(|level| *level != "#").collect();
        beginnings.extend((1..=levels.len()).filter_map(|end| levels.get(..end).map(<[_]>::to_vec)));
    }
    beginnings.len()
}

/// Levels from few letters, so that filters and topics meet, and sometimes from many, so that nodes
/// are wide.
fn level() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => prop::sample::select(vec!["a", "b", "", "$", "$s"]).prop_map(str::to_owned),
        2 => (0..60_u8).prop_map(|n| n.to_string()),
    ]
}

fn topic() -> impl Strategy<Value = TopicName> {
    prop::collection::vec(level(), 1..5)
        .prop_filter_map("empty", |levels| TopicName::parse(levels.join("/").into()).ok())
}

fn filter() -> impl Strategy<Value = TopicFilter> {
    let level = prop_oneof![3 => level(), 2 => Just("+".to_owned())];
    (prop::collection::vec(level, 0..5), prop::bool::weighted(0.3)).prop_filter_map(
        "empty",
        |(mut levels, multi)| {
            levels.extend(multi.then(|| "#".to_owned()));
            TopicFilter::parse(levels.join("/").into()).ok()
        },
    )
}

fn change() -> impl Strategy<Value = Change<u64, u32>> {
    // One key and filter in a while is what the others are about: it is changed often.
    let filter = prop_oneof![4 => filter(), 1 => prop::sample::select(vec!["a/+", "#", "+/#", "a/b"]).prop_map(|f| f.parse().unwrap())];
    (filter, 0..24_u64, prop::option::weighted(0.6, any::<u32>())).prop_map(
        |(filter, key, value)| match value {
            Some(value) => Change::Insert { filter, key, value },
            None => Change::Remove { filter, key: key % 4 },
        },
    )
}

fn apply_to(model: &mut Model, change: Change<u64, u32>) -> Option<u32> {
    match change {
        Change::Insert { filter, key, value } => model.insert((filter, key), value),
        Change::Remove { filter, key } => model.remove(&(filter, key)),
    }
}

proptest! {
    #[test]
    fn matches_agree_with_the_plain_reading(
        filters in prop::collection::vec(filter(), 0..60),
        topics in prop::collection::vec(topic(), 1..20),
    ) {
        let model: Model = (0..).zip(filters).map(|(key, filter)| ((filter, key), 0)).collect();
        let router = Router::new();
        router.apply(model.keys().map(|(filter, key)| Change::Insert { filter: filter.clone(), key: *key, value: 0 }).collect());
        for topic in &topics {
            prop_assert_eq!(routed(&router.load(), topic), expected(&model, topic), "{}", topic);
        }
    }

    #[test]
    fn names_agree_with_the_plain_reading(
        filters in prop::collection::vec(filter(), 0..60),
        topics in prop::collection::vec(topic(), 0..20),
        wanted in filter(),
    ) {
        let router = Router::new();
        let topics = topics.iter().map(|topic| topic.as_str().parse().unwrap());
        let all: BTreeSet<TopicFilter> = filters.into_iter().chain(topics).collect();
        router.apply((0..).zip(&all).map(|(key, filter)| insert(filter.as_str(), key, 0)).collect());
        let mut names = Vec::new();
        let mut every = |name: &str| { names.push(name.to_owned()); true };
        prop_assert!(router.load().names(&wanted, usize::MAX, &mut every));
        names.sort_unstable();
        let concrete = all.iter().filter(|filter| !filter.is_wildcard()).map(|filter| filter.as_str());
        let expected: Vec<&str> = concrete.filter(|text| wanted.matches(&name(text))).collect();
        prop_assert_eq!(&names, &expected);
        // Where it is to end it does.
        let mut first = 0;
        let whole = router.load().names(&wanted, usize::MAX, &mut |_| { first += 1; false });
        prop_assert_eq!((whole, first), (names.is_empty(), names.len().min(1)));
        let nodes = router.load().nodes();
        prop_assert!(router.load().names(&wanted, nodes, &mut |_| true));
        prop_assert!(names.is_empty() || !router.load().names(&wanted, 0, &mut |_| true));
    }

    #[test]
    fn changes_agree_with_a_model(
        batches in prop::collection::vec(prop::collection::vec(change(), 0..12), 0..24),
        topics in prop::collection::vec(topic(), 1..12),
    ) {
        let (router, mut model) = (Router::new(), Model::new());
        let mut cache = RouteCache::with_capacity(8);
        let mut past: Vec<(Arc<Snapshot<u64, u32>>, Model)> = Vec::new();
        for batch in batches {
            let before: Vec<_> = batch.iter().cloned().map(|change| apply_to(&mut model, change)).collect();
            prop_assert_eq!(router.apply(batch), before);
            let now = router.snapshot();
            prop_assert_eq!((now.subscriptions(), now.nodes()), (model.len(), nodes(&model)));
            for topic in &topics {
                let targets = expected(&model, topic);
                prop_assert_eq!(&routed(&now, topic), &targets);
                // A cache never gives what a match would not.
                let cached = cache.get_or_insert_with(&now, topic, || routed(&now, topic).into());
                prop_assert_eq!(&*cached, &*targets);
                // The same epoch means the same matches.
                for (then, was) in &past {
                    if then.epoch(topic.first_level()) == now.epoch(topic.first_level()) {
                        prop_assert_eq!(&expected(was, topic), &targets);
                    }
                }
            }
            past.push((now, model.clone()));
        }
        // What was published never changes.
        for (then, was) in &past {
            prop_assert_eq!((then.subscriptions(), then.nodes()), (was.len(), nodes(was)));
            for topic in &topics {
                prop_assert_eq!(routed(then, topic), expected(was, topic));
            }
        }
        // Removing everything leaves nothing.
        let all = model.into_keys().map(|(filter, key)| Change::Remove { filter, key }).collect();
        router.apply(all);
        prop_assert_eq!((router.load().subscriptions(), router.load().nodes()), (0, 0));
        for topic in &topics {
            prop_assert_eq!(routed(&router.load(), topic), vec![]);
        }
    }
}

#[test]
fn every_change_says_what_was_before() {
    let router = Numbers::new();
    let changes =
        vec![insert("a", 1, 10), insert("a", 1, 11), insert("a", 2, 20), remove("a", 1), remove("a", 1)];
    assert_eq!(router.apply(changes), [None, Some(10), None, Some(11), None]);
    assert_eq!((router.load().subscriptions(), router.load().nodes(), router.load().version()), (1, 1, 1));
    assert_eq!(router.apply(vec![remove("b/c", 1), remove("#", 2)]), [None, None]);
    assert_eq!(router.load().version(), 1); // nothing has changed, nothing is published
    assert_eq!(router.apply(vec![]), []);
}

#[test]
fn epochs_change_for_those_concerned() {
    let router = Numbers::new();
    let epochs = || ["a", "$SYS", ""].map(|first| router.load().epoch(first));
    let changed = |change| {
        let before = epochs();
        router.apply(vec![change]);
        let after = epochs();
        [0, 1, 2].map(|at| before.get(at) != after.get(at))
    };
    assert_eq!(changed(insert("#", 1, 0)), [true, false, true]); // [MQTT-4.7.2-1]
    assert_eq!(changed(insert("+/x", 1, 0)), [true, false, true]);
    assert_eq!(changed(remove("+/x", 1)), [true, false, true]);
    assert_eq!(changed(remove("+/x", 1)), [false, false, false]);
    assert!(changed(insert("a/b/c", 1, 0))[0]);
    assert!(changed(insert("a/b/c", 1, 1))[0]); // a new value is a change
    assert!(changed(insert("$SYS/#", 1, 0))[1]);
    assert!(changed(insert("/+", 1, 0))[2]);
    // A first level that comes back after a removal has an epoch of its own.
    let before = router.load().epoch("b");
    router.apply(vec![insert("b", 1, 0)]);
    router.apply(vec![remove("b", 1)]);
    assert_ne!(router.load().epoch("b"), before);
}

#[test]
fn a_topic_meets_each_node_once() {
    // All filters of + and a over twelve levels: 4 096 filters, 8 190 nodes.
    let router = Numbers::new();
    let filter = |bits: u64| {
        (0..12).map(|at| if bits >> at & 1 == 0 { "+" } else { "a" }).collect::<Vec<_>>().join("/")
    };
    router.apply((0..4_096).map(|bits| insert(&filter(bits), bits, 0)).collect());
    assert_eq!(router.load().nodes(), 8_190);
    let all: Vec<_> = (0..4_096).map(|bits| (bits, 0)).collect();
    assert_eq!(routed(&router.load(), &name(&["a"; 12].join("/"))), all);
    assert_eq!(routed(&router.load(), &name(&["b"; 12].join("/"))), [(0, 0)]);
    assert_eq!(routed(&router.load(), &name(&["a"; 11].join("/"))), []);
}

#[test]
fn the_deepest_filters_need_no_deep_stack() {
    let deepest = || {
        let router = Numbers::new();
        let slashes = "/".repeat(65_535);
        let plus = ["+"; 32_768].join("/");
        router.apply(vec![
            insert(&slashes, 1, 0),
            insert(&plus, 2, 0),
            insert(&format!("{}/#", &plus[2..]), 3, 0),
        ]);
        assert_eq!(router.load().nodes(), 65_536 + 32_768);
        assert_eq!(routed(&router.load(), &name(&slashes)), [(1, 0), (3, 0)]);
        assert_eq!(routed(&router.load(), &name(&slashes[..32_767])), [(2, 0), (3, 0)]);
        let kept = router.snapshot();
        router.apply(vec![remove(&slashes, 1)]);
        assert_eq!(router.load().nodes(), 32_768);
        drop(router);
        assert_eq!(routed(&kept, &name(&slashes)), [(1, 0), (3, 0)]);
    };
    thread::Builder::new().stack_size(128 * 1_024).spawn(deepest).unwrap().join().unwrap();
}

#[test]
fn wide_nodes_and_popular_filters_shrink_to_nothing() {
    let router = Numbers::new();
    let both = |n: u64| [insert(&format!("dev/{n}/cmd"), n, 0), insert("all", n, 0)];
    router.apply((0..5_000).flat_map(both).collect());
    assert_eq!((router.load().subscriptions(), router.load().nodes()), (10_000, 10_002));
    assert_eq!(routed(&router.load(), &name("dev/4321/cmd")), [(4_321, 0)]);
    assert_eq!(routed(&router.load(), &name("all")).len(), 5_000);
    for n in 0..5_000 {
        assert_eq!(
            router.apply(vec![remove(&format!("dev/{n}/cmd"), n), remove("all", n)]),
            [Some(0), Some(0)]
        );
    }
    assert_eq!((router.load().subscriptions(), router.load().nodes()), (0, 0));
}

#[test]
fn readers_see_a_batch_whole_or_not_at_all() {
    let (router, done) = (Numbers::new(), AtomicBool::new(false));
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let topic = name("a/b");
            while !done.load(Ordering::Relaxed) {
                let targets = routed(&router.load(), &topic).len();
                assert!(targets == 0 || targets == 40, "{targets}");
            }
        });
        for _ in 0..500 {
            router.apply((0..40).map(|key| insert("a/+", key, 0)).collect());
            router.apply((0..40).map(|key| remove("a/+", key)).collect());
        }
        done.store(true, Ordering::Relaxed);
        reader.join().unwrap();
    });
}

#[test]
fn the_cache_is_bounded_and_keeps_no_read_buffer() {
    let router = Numbers::new();
    let snapshot = router.snapshot();
    let mut cache = RouteCache::<u64>::with_capacity(10);
    for n in 0..1_000 {
        let topic = name(&format!("t/{n}"));
        assert_eq!(cache.get(&snapshot, &topic), None);
        cache.get_or_insert_with(&snapshot, &topic, || vec![n].into());
        assert_eq!(cache.get(&snapshot, &topic).map(|targets| targets.to_vec()), Some(vec![n]));
    }
    assert!(cache.len() <= 16, "{}", cache.len());
    // Large things are answered, but not kept.
    let (long, wide) = (name(&"x".repeat(2_000)), name("wide"));
    cache.clear();
    assert_eq!(cache.get_or_insert_with(&snapshot, &long, || vec![1].into()).len(), 1);
    assert_eq!(cache.get_or_insert_with(&snapshot, &wide, || vec![1; 5_000].into()).len(), 5_000);
    assert!(cache.is_empty());
    // The key is a copy of the topic.
    let buffer = bytestring::ByteString::from("t/1".to_owned());
    cache.get_or_insert_with(&snapshot, &TopicName::parse(buffer.clone()).unwrap(), || vec![].into());
    assert!(buffer.into_bytes().is_unique());
}

#[tokio::test(start_paused = true)]
async fn concurrent_changes_share_a_batch() {
    let router = Arc::new(Numbers::new());
    assert_eq!(router.subscribe(insert("a", 0, 0)).await, Ok(None)); // alone: at once
    let mut callers = tokio::task::JoinSet::new();
    for key in 1..=100 {
        let router = Arc::clone(&router);
        callers.spawn(async move {
            let before =
                router.submit(vec![insert("a", key, 0), insert("a", key, 1), remove("a", 0)]).await.unwrap();
            // Whoever is answered is subscribed.
            assert!(routed(&router.load(), &name("a")).contains(&(key, 1)));
            before
        });
    }
    let answers = callers.join_all().await;
    assert_eq!(answers.iter().filter(|before| before[2] == Some(0)).count(), 1);
    assert!(answers.iter().all(|before| before[..2] == [None, Some(0)]));
    assert_eq!(router.load().subscriptions(), 100);
    assert!(router.load().version() < 10, "{} batches", router.load().version());
}

#[tokio::test(start_paused = true)]
async fn a_batch_rests_as_long_as_a_long_one_took() {
    let router = Numbers::new();
    let start = Instant::now();
    for key in 0..3 {
        router.subscribe(insert("a", key, 0)).await.unwrap();
    }
    assert_eq!(start.elapsed(), Duration::ZERO);
    router.pending.lock().applied(Duration::from_millis(4));
    router.subscribe(insert("a", 3, 0)).await.unwrap();
    assert_eq!(start.elapsed(), Duration::from_millis(4));
    // A full batch does not wait.
    router.pending.lock().applied(Duration::from_millis(4));
    router.submit((0..2_000).map(|key| insert("b", key, 0)).collect()).await.unwrap();
    assert_eq!(start.elapsed(), Duration::from_millis(4));
}

/// Polls a submission once, so that it is handed over and waits.
async fn hand_over<F: Future + Unpin>(submission: &mut F) {
    let polled =
        std::future::poll_fn(|cx| std::task::Poll::Ready(std::pin::Pin::new(&mut *submission).poll(cx)));
    assert!(polled.await.is_pending());
}

#[tokio::test(start_paused = true)]
async fn what_was_handed_over_is_applied_whoever_goes() {
    let router = Numbers::new();
    router.subscribe(insert("a", 0, 0)).await.unwrap();
    let mut leader = Box::pin(router.subscribe(insert("a", 1, 0)));
    let mut gone = Box::pin(router.subscribe(insert("a", 2, 0)));
    let mut follower = Box::pin(router.subscribe(insert("a", 3, 0)));
    hand_over(&mut leader).await;
    hand_over(&mut gone).await;
    hand_over(&mut follower).await;
    drop(gone);
    assert_eq!(router.load().subscriptions(), 1);
    drop(leader);
    assert_eq!(router.load().subscriptions(), 4);
    assert_eq!(timeout(Duration::ZERO, follower).await, Ok(Ok(None)));
    // There is a new leader for the next.
    assert_eq!(router.subscribe(insert("a", 4, 0)).await, Ok(None));
}

#[tokio::test(start_paused = true)]
async fn apply_does_not_overtake_what_was_submitted() {
    let router = Numbers::new();
    router.subscribe(insert("a", 0, 0)).await.unwrap();
    let mut submitted = Box::pin(router.subscribe(insert("a", 1, 7)));
    hand_over(&mut submitted).await;
    assert_eq!(router.apply(vec![remove("a", 1)]), [Some(7)]);
    assert_eq!(submitted.await, Ok(None));
    assert_eq!(router.load().subscriptions(), 1);
}

/// A key that cannot be compared with itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Broken(u64);

impl PartialOrd for Broken {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Broken {
    fn cmp(&self, _: &Self) -> std::cmp::Ordering {
        panic!("planted")
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_ends_its_batch_alone() {
    let router = Arc::new(Router::new());
    let change = |key| Change::Insert { filter: "a".parse().unwrap(), key: Broken(key), value: () };
    router.submit(vec![change(0)]).await.unwrap();
    let mut callers = tokio::task::JoinSet::new();
    for key in [1, 2] {
        let (router, change) = (Arc::clone(&router), change(key));
        callers.spawn(async move { router.submit(vec![change]).await });
    }
    let mut panics = 0;
    while let Some(outcome) = callers.join_next().await {
        match outcome {
            Ok(answer) => assert_eq!(answer, Err(BatchAbandoned)),
            Err(error) => panics += usize::from(error.is_panic()),
        }
    }
    assert_eq!(panics, 1); // the leader's
    let other = Change::Insert { filter: "b".parse().unwrap(), key: Broken(3), value: () };
    assert_eq!(router.submit(vec![other]).await, Ok(vec![None]));
}
