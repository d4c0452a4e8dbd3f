use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Float32Type, Int64Type, TimestampMicrosecondType};

use super::*;
use crate::types::{ByteIds, IdType, Ids};

const IDS: IdTypes = IdTypes { user: IdType::Utf8, item: IdType::Int32 };

fn users() -> Ids {
    let mut ids = ByteIds::default();
    ["ann", "bo"].iter().for_each(|id| ids.push(id.as_bytes()));
    Ids::Bytes(ids)
}

fn items() -> Ids {
    Ids::Int(vec![10, 20, 30])
}

fn rows<'a>(ids: &'a Ids, rows: &[u32]) -> IdRows<'a> {
    IdRows { ids, rows: rows.to_vec() }
}

fn popularity(items: &Ids) -> ItemPopularityRows<'_> {
    ItemPopularityRows {
        item: rows(items, &[0, 2]),
        item_idx: vec![0, 2],
        events: vec![5, 1],
        users: vec![2, 1],
        weight: vec![5.0, 1.0],
        weight_decayed: vec![2.5, 0.5],
        trend: vec![1.5, 1.0],
        rank: vec![1, 2],
    }
}

fn top_k<'a>(users: &'a Ids, items: &'a Ids) -> UserTopKRows<'a> {
    UserTopKRows {
        user: rows(users, &[0, 0, 1]),
        rank: vec![1, 2, 1],
        item: rows(items, &[2, 0, 1]),
        score: vec![0.9, 0.1, 0.5],
        source: vec![Source::ItemNeighbors, Source::Popularity, Source::Fallback],
        because_item: OptionalIdRows { ids: items, rows: vec![Some(1), None, None] },
    }
}

fn assert_schema(table: &Table, batch: &RecordBatch, n_rows: usize) {
    assert_eq!(batch.schema(), table.arrow_schema(IDS), "{}", table.name);
    assert_eq!(batch.num_rows(), n_rows);
    assert_eq!(batch.num_columns(), table.columns.len());
}

#[test]
fn rows_of_items_and_users_become_batches() {
    let (users, items) = (users(), items());
    let batch = ItemRows {
        item: rows(&items, &[0, 1]),
        item_idx: vec![Some(0), None],
        title: vec![Some("Tide"), None],
        events: vec![3, 1],
        users: vec![2, 1],
        first_event: vec![Some(1), None],
        last_event: vec![Some(2), None],
        eligible: vec![true, false],
        reason: vec![None, Some("too_few_users")],
        recommendable: vec![false, true],
    };
    let batch = batch.into_batch(IDS).unwrap();
    assert_schema(&tables::ITEMS, &batch, 2);
    let first = batch.column(5).as_primitive::<TimestampMicrosecondType>();
    assert_eq!((first.value(0), first.is_null(1)), (1, true));

    let batch = UserRows {
        user: IdRows::all(&users),
        user_idx: vec![Some(1 << 32), None],
        segment: vec![None, Some("SE")],
        events: vec![3, 0],
        items: vec![2, 0],
        first_event: vec![None, None],
        last_event: vec![None, None],
        eligible: vec![true, false],
        reason: vec![None, Some("no_weight")],
    };
    let batch = batch.into_batch(IDS).unwrap();
    assert_schema(&tables::USERS, &batch, 2);
    assert_eq!(batch.column(1).as_primitive::<Int64Type>().value(0), 1 << 32);
}

#[test]
fn rows_of_item_tables_become_batches() {
    let items = items();
    let batch = popularity(&items).into_batch(IDS).unwrap();
    assert_schema(&tables::ITEM_POPULARITY, &batch, 2);

    let by_segment =
        ItemPopularityBySegmentRows { segment: vec!["NO", "SE"], popularity: popularity(&items) };
    let batch = by_segment.into_batch(IDS).unwrap();
    assert_schema(&tables::ITEM_POPULARITY_BY_SEGMENT, &batch, 2);
    assert_eq!(batch.column(0).as_string::<i32>().value(1), "SE");

    let debias = DebiasWeightRows {
        item: rows(&items, &[1]),
        item_idx: vec![1],
        propensity: vec![0.5],
        ips_weight: vec![2.0],
        discount: vec![0.25],
    };
    assert_schema(&tables::DEBIAS_WEIGHTS, &debias.into_batch(IDS).unwrap(), 1);

    let neighbors = ItemNeighborRows {
        item: rows(&items, &[0, 0]),
        rank: vec![1, 2],
        neighbor: rows(&items, &[2, 1]),
        score: vec![0.5, 0.25],
        support: vec![4, 2],
    };
    assert_schema(&tables::ITEM_NEIGHBORS, &neighbors.into_batch(IDS).unwrap(), 2);
}

#[test]
fn rows_of_lists_become_batches() {
    let (users, items) = (users(), items());
    let batch = top_k(&users, &items).into_batch(IDS).unwrap();
    assert_schema(&tables::USER_TOP_K, &batch, 3);
    let sources: Vec<_> = batch.column(4).as_string::<i32>().iter().flatten().collect();
    assert_eq!(sources, ["item_neighbors", "popularity", "fallback"]);
    assert_eq!(batch.column(5).null_count(), 2);

    let UserTopKRows { item, score, source, because_item, .. } = top_k(&users, &items);
    let user = IdRows::all(&users);
    let lists =
        UserTopKListRows { user, list_lengths: vec![3, 0], item, score, source, because_item };
    let batch = lists.into_batch(IDS).unwrap();
    assert_schema(&tables::USER_TOP_K_LISTS, &batch, 2);
    let scores = batch.column(2).as_list::<i32>();
    assert_eq!(scores.value(0).as_primitive::<Float32Type>().values(), &[0.9, 0.1, 0.5]);
    assert!(scores.value(1).is_empty() && scores.is_valid(1), "an empty list is not a null");

    let segment = vec![tables::EVERY_SEGMENT, "SE"];
    let item = rows(&items, &[0, 1]);
    let default = DefaultTopKRows { segment, rank: vec![1, 1], item, score: vec![1.0, 0.5] };
    assert_schema(&tables::DEFAULT_TOP_K, &default.into_batch(IDS).unwrap(), 2);
}

#[test]
fn rejects_become_a_batch() {
    let rejects = RejectRows {
        file: vec!["a.parquet"],
        row_group: vec![0],
        reason: vec!["nan_value"],
        count: vec![2],
        first_row: vec![17],
    };
    assert_schema(&tables::REJECTS, &rejects.into_batch(IDS).unwrap(), 1);
    assert_schema(&tables::REJECTS, &RejectRows::default().into_batch(IDS).unwrap(), 0);
}

#[test]
fn factors_become_a_fixed_size_or_a_plain_list() {
    let (users, items) = (users(), items());
    for fixed_size in [true, false] {
        let embeddings = Embeddings { n_factors: 2, fixed_size };
        let embedding = vec![1.0, 2.0, 3.0, 4.0];
        let item = ItemFactorRows {
            item: rows(&items, &[0, 2]),
            item_idx: vec![0, 2],
            embedding: embedding.clone(),
        };
        let item = item.into_batch(IDS, embeddings).unwrap();
        assert_eq!(item.schema(), tables::ITEM_FACTORS.arrow_schema_with(IDS, embeddings));
        let user = UserFactorRows {
            user: IdRows::all(&users),
            user_idx: vec![0, 1],
            history_digest: vec![-1, 7],
            embedding,
        };
        let user = user.into_batch(IDS, embeddings).unwrap();
        assert_eq!(user.schema(), tables::USER_FACTORS.arrow_schema_with(IDS, embeddings));
        let last = match fixed_size {
            true => user.column(2).as_fixed_size_list().value(1),
            false => user.column(2).as_list::<i32>().value(1),
        };
        assert_eq!(last.as_primitive::<Float32Type>().values(), &[3.0, 4.0]);
        let none = UserFactorRows {
            user: rows(&users, &[]),
            user_idx: vec![],
            history_digest: vec![],
            embedding: vec![],
        };
        assert_eq!(none.into_batch(IDS, embeddings).unwrap().num_rows(), 0);
    }
}

#[test]
fn columns_of_different_length_are_refused() {
    let (users, items) = (users(), items());
    let mut top_k = top_k(&users, &items);
    top_k.rank.pop();
    let error = top_k.into_batch(IDS).unwrap_err();
    assert_eq!(error.to_string(), "rows of table \"user_top_k\" do not form a batch");
}

#[test]
fn ids_come_back_in_their_own_type() {
    let (users, items) = (users(), items());
    let ids = IdTypes { user: IdType::LargeUtf8, item: IdType::Int64 };
    let batch = top_k(&users, &items).into_batch(ids).unwrap();
    assert_eq!(batch.schema(), tables::USER_TOP_K.arrow_schema(ids));
    assert_eq!(*batch.column(0).data_type(), DataType::LargeUtf8);
    assert_eq!(*batch.column(5).data_type(), DataType::Int64);
}

#[test]
fn no_column_is_unsigned() {
    for table in tables::ALL {
        for field in table.arrow_schema(IDS).fields() {
            assert!(!field.data_type().is_unsigned_integer(), "{}.{}", table.name, field.name());
            assert!(field.metadata().is_empty());
        }
    }
}
