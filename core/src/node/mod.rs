//! One member: takes requests, proposes or reads, answers. The waist that every face uses.
