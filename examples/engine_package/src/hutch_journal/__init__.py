"""An engine for hutch. journal.plug beside this file describes it; nothing here needs to be imported."""
