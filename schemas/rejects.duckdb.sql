-- rejects for DuckDB; the rows of one run.
CREATE TABLE rejects (
    file VARCHAR NOT NULL,
    row_group INTEGER NOT NULL,
    reason VARCHAR NOT NULL,
    count BIGINT NOT NULL,
    first_row BIGINT NOT NULL,
    PRIMARY KEY (file, row_group, reason)
);
COMMENT ON TABLE rejects IS 'Where rows of the input could not be used, and why: places only, never content. Rows that are valid but do not count, such as those outside the window, are not here.';
COMMENT ON COLUMN rejects.file IS 'The input file.';
COMMENT ON COLUMN rejects.row_group IS 'The row group in the file, from 0.';
COMMENT ON COLUMN rejects.reason IS 'What is wrong with the rows.';
COMMENT ON COLUMN rejects.count IS 'Rows of that row group with that reason. Unit: rows.';
COMMENT ON COLUMN rejects.first_row IS 'The first of them: its row number in the file, from 0.';
