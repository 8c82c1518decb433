//! Values that merge by themselves: counter, set, map, flag, register. Paper: §4.4 (semantic reconciliation).
