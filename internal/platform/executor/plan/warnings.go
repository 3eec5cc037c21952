package plan

// ScoreKept is the warning of an oom_score_adj that could not be lowered.
func ScoreKept(adj string) string {
	return "oom_score_adj " + adj + " is lower than this machine allows without CAP_SYS_RESOURCE; it is left as it is"
}

// LimitKept is the warning of a limit that could not be raised above the present one.
func LimitKept(name, now string) string {
	return name + ": a hard limit above " + now + " needs CAP_SYS_RESOURCE, which this machine lacks; it is set to that"
}

// Unlimited is how a limit of RLIM_INFINITY is called.
const Unlimited = "unlimited"
