package executor

import (
	"slices"
	"time"

	"github.com/orlop-io/orlop/internal/base/trace"
	"github.com/orlop-io/orlop/internal/platform/executor/plan"
)

// phases are the times of what init does before the gate. A start that is traced has the
// operation Clock in its plan wherever another phase begins; one that is not pays nothing.
type phases struct {
	step  *trace.Span // what they are below
	begin time.Time
	names []string
	at    []int64 // by name, nanoseconds since 1970 at which it began; 0: not yet
}

// walk are the parts of init's walk before the gate (docs/design/executor.md), in order.
var walk = [...]string{"init namespaces", "init root", "init mounts", "init hooks", "init pivot", "init process"}

// part returns which of them an operation belongs to.
func part(c plan.Code) int {
	switch {
	case c < plan.Take:
		return 0
	case c <= plan.Root:
		return 1
	case c == plan.Sync || c == plan.Hook:
		return 3
	case c == plan.Pivot || c == plan.MoveRoot:
		return 4
	case c > plan.EnterRoot && c < plan.Pivot:
		return 2
	}
	return 5
}

// clocks puts the operations into the plan. A part has begun with its first operation; one
// of an earlier part that comes later does not bring that back, and before the pivot it is
// not the process's turn.
func (p *phases) clocks(to *plan.Plan) {
	ops := make([]plan.Op, 0, len(to.Ops)+len(walk))
	pivot := slices.IndexFunc(to.Ops, func(o plan.Op) bool { return part(o.Code) == part(plan.Pivot) })
	last := -1
	for i, o := range to.Ops {
		if o.Code == plan.Gate {
			ops = append(ops, to.Ops[i:]...) // what comes after it is not for init's own calls
			break
		}
		if n := part(o.Code); n > last && (i >= pivot || n < part(plan.Pivot)) {
			ops = append(ops, plan.Op{Code: plan.Clock, N: plan.N(uint64(len(p.names)))})
			p.names = append(p.names, walk[n])
			last = n
		}
		ops = append(ops, o)
	}
	to.Ops = ops
	p.at = make([]int64, len(p.names))
}

// note takes a message of init's.
func (p *phases) note(msg []byte) {
	if n, at, ok := plan.DecodeClock(msg); ok && n < uint64(len(p.at)) {
		p.at[n] = at
	}
}

// end makes spans of the times. The last phase ends now, with the error that the start
// ended with; until the first one init was executed, and read its plan.
func (p *phases) end(err *error) {
	if p.step == nil {
		return
	}
	now := time.Now().UnixNano()
	list := []trace.Timing{{Name: "init begin", Parent: -1, Begin: p.begin.UnixNano(), End: now}}
	for i, at := range p.at {
		if at == 0 {
			break
		}
		list[len(list)-1].End = at
		list = append(list, trace.Timing{Name: p.names[i], Parent: -1, Begin: at, End: now})
	}
	if *err != nil {
		list[len(list)-1].Err = (*err).Error()
	}
	p.step.Replay(list)
}
