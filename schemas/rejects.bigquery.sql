-- rejects for BigQuery; the rows of one run.
CREATE TABLE rejects (
    file STRING NOT NULL OPTIONS(description = "The input file."),
    row_group INT64 NOT NULL OPTIONS(description = "The row group in the file, from 0."),
    reason STRING NOT NULL OPTIONS(description = "What is wrong with the rows."),
    count INT64 NOT NULL OPTIONS(description = "Rows of that row group with that reason. Unit: rows."),
    first_row INT64 NOT NULL OPTIONS(description = "The first of them: its row number in the file, from 0."),
    PRIMARY KEY (file, row_group, reason) NOT ENFORCED
)
OPTIONS(description = "Where rows of the input could not be used, and why: places only, never content. Rows that are valid but do not count, such as those outside the window, are not here.");
