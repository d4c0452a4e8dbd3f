-- rejects for Snowflake; the rows of one run.
CREATE TABLE rejects (
    file VARCHAR NOT NULL COMMENT 'The input file.',
    row_group INTEGER NOT NULL COMMENT 'The row group in the file, from 0.',
    reason VARCHAR NOT NULL COMMENT 'What is wrong with the rows.',
    count BIGINT NOT NULL COMMENT 'Rows of that row group with that reason. Unit: rows.',
    first_row BIGINT NOT NULL COMMENT 'The first of them: its row number in the file, from 0.',
    PRIMARY KEY (file, row_group, reason)
)
COMMENT = 'Where rows of the input could not be used, and why: places only, never content. Rows that are valid but do not count, such as those outside the window, are not here.';
