use std::io::Cursor;

use super::*;

const BOTH: [RecordFormat; 2] = [RecordFormat::Ndjson, RecordFormat::Csv];

fn record(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Record {
    Record {
        key: key.into(),
        value: value.into(),
    }
}

fn write(format: RecordFormat, records: &[Record]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut writer = Writer::new(format, &mut out).unwrap();
    for record in records {
        writer.write(record).unwrap();
    }
    writer.flush().unwrap();
    drop(writer);
    out
}

fn read_all(format: RecordFormat, text: impl Into<Vec<u8>>) -> Vec<Numbered> {
    read(format, Cursor::new(text.into())).collect()
}

fn good(format: RecordFormat, text: impl Into<Vec<u8>>) -> Vec<Record> {
    read_all(format, text)
        .into_iter()
        .map(|numbered| numbered.record.unwrap())
        .collect()
}

fn awkward() -> Vec<Record> {
    let all_bytes: Vec<u8> = (0..=255).collect();
    vec![
        record("plain", "value"),
        record("empty", ""),
        record("quotes", "say \"hi\", she said"),
        record("newlines", "a\nb\r\nc\rd\n"),
        record("comma,key\n", ",,,\n"),
        record("tabs\tand nul", "\u{0}\t\u{1}"),
        record("umlaut grün 🥔", "雪"),
        record(" spaces ", "  \n "),
        record(all_bytes.clone(), all_bytes.clone()),
        record(vec![0xff, 0xfe], "text beside a binary key"),
        record("text beside a binary value", vec![0x80]),
        record("\u{feff}mark", "\u{feff}"),
        // Siblings are records of the same key.
        record("plain", "value 2"),
    ]
}

#[test]
fn what_is_written_is_read_back_byte_for_byte() {
    for format in BOTH {
        let bytes = write(format, &awkward());
        assert_eq!(good(format, bytes.clone()), awkward());
        assert_eq!(
            write(format, &awkward()),
            bytes,
            "the same records make the same bytes"
        );
    }
}

#[test]
fn random_bytes_are_read_back() {
    let random = |length: usize| -> Vec<u8> { (0..length).map(|_| rand::random()).collect() };
    // Bytes that matter to the formats come up often.
    let nasty = |length: usize| -> Vec<u8> {
        (0..length)
            .map(|_| b"\",\n\r\\a{}"[rand::random_range(0..8)])
            .collect()
    };
    for format in BOTH {
        for length in 1..100 {
            let records = vec![
                record(random(length), nasty(length)),
                record(nasty(length), random(length)),
            ];
            let bytes = write(format, &records);
            assert_eq!(good(format, bytes), records, "{records:?}");
        }
    }
}

#[test]
fn ndjson_by_hand() {
    let text = "{\"key\":\"a\",\"value\":\"1\"}\n\n  {\"value_b64\":\"3q2+7w==\", \"key_b64\":\"AP8=\"}  \r\n{\"key\":\"b\",\"value\":\"\"}";
    let expected = [
        record("a", "1"),
        record(vec![0, 0xff], vec![0xde, 0xad, 0xbe, 0xef]),
        record("b", ""),
    ];
    assert_eq!(good(RecordFormat::Ndjson, text), expected);
    assert_eq!(read_all(RecordFormat::Ndjson, text)[1].line, 3);
}

#[test]
fn csv_by_hand() {
    assert_eq!(
        good(RecordFormat::Csv, "key,value\na,1\n\"b\n\",\"x\"\"y\"\n"),
        [record("a", "1"), record("b\n", "x\"y")]
    );
    assert_eq!(
        good(RecordFormat::Csv, "\u{feff}value,key\r\n1,a\r\n"),
        [record("a", "1")]
    );
    assert_eq!(
        good(RecordFormat::Csv, "key_b64,value_b64\nAP8=,\n"),
        [record(vec![0, 0xff], "")]
    );
    let lines: Vec<u64> = read_all(RecordFormat::Csv, "key,value\n\"a\n\n\",1\nb,2\n")
        .iter()
        .map(|numbered| numbered.line)
        .collect();
    assert_eq!(lines, [2, 5]);
}

#[test]
fn malformed_lines_are_told_with_their_number_and_do_not_stop_the_reading() {
    let ndjson = "{\"key\":\"a\",\"value\":\"1\"}\nnot json\n{\"key\":\"b\"}\n{\"key\":\"c\",\"value\":\"1\",\"value_b64\":\"\"}\n{\"key\":\"\",\"value\":\"1\"}\n{\"key\":\"d\",\"value\":7}\n{\"kye\":\"d\",\"value\":\"1\"}\n{\"key\":\"e\",\"value_b64\":\"?\"}\n{\"key\":\"z\",\"value\":\"1\"}\n";
    let csv = "key,value\na,1\nonly one\nx,y,z\n,1\nz,1\n";
    for (format, text, bad) in [
        (RecordFormat::Ndjson, ndjson, vec![2, 3, 4, 5, 6, 7, 8]),
        (RecordFormat::Csv, csv, vec![3, 4, 5]),
    ] {
        let all = read_all(format, text);
        let failed: Vec<_> = all.iter().filter(|numbered| numbered.record.is_err()).collect();
        assert_eq!(
            failed.iter().map(|numbered| numbered.line).collect::<Vec<_>>(),
            bad,
            "{failed:?}"
        );
        assert!(failed.iter().all(|numbered| !numbered.last));
        assert_eq!(all.last().unwrap().record, Ok(record("z", "1")));
    }
}

#[test]
fn a_header_that_is_not_understood_is_refused_as_line_1() {
    for text in [
        "a,b\n1,2\n",
        "key\n1\n",
        "value\n1\n",
        "key,value,key\n1,2,3\n",
        "",
        "key;value\n1;2\n",
    ] {
        let all = read_all(RecordFormat::Csv, text);
        assert_eq!((all.len(), all[0].line, all[0].last), (1, 1, true), "{text:?}");
        assert!(all[0].record.is_err());
    }
}

#[test]
fn memory_stays_bounded_without_a_line_end_or_a_closing_quote() {
    for (format, head) in [(RecordFormat::Ndjson, ""), (RecordFormat::Csv, "key,value\n\"")] {
        let endless = Cursor::new(head.as_bytes().to_vec()).chain(io::repeat(b'x'));
        let all: Vec<_> = read(format, endless).collect();
        assert_eq!(all.len(), 1);
        assert!(
            all[0].last && all[0].record.as_ref().unwrap_err().contains("longer than"),
            "{all:?}"
        );
    }
}
