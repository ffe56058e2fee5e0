"""What commands write beside masks, reports of cases and rows of answers; and what they refuse to replace."""
