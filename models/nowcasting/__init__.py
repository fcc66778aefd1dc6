"""Turn past rain into future rain: nowcasters, motion, matching, losses of events, baselines."""
