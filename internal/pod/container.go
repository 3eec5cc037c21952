package pod

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"time"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/fault"
)

var (
	faultContainerIntent  = fault.New("pod.container.intent-recorded")
	faultContainerFiles   = fault.New("pod.container.files-made")
	faultContainerStarted = fault.New("pod.container.started")
	faultContainerDone    = fault.New("pod.container.recorded")
	faultContainerHooked  = fault.New("pod.container.hook-ended")
	faultContainerRemoved = fault.New("pod.container.removed")
)

func canonicalState(s state) string {
	raw, _ := json.Marshal(s)
	return string(raw)
}

func newContainerID() ContainerID {
	var b [32]byte
	rand.Read(b[:])
	return ContainerID(hex.EncodeToString(b[:]))
}

// advance does the next thing for one container, and says when to look again.
func (w *worker) advance(ctx context.Context, spec *Spec, c *Container) (time.Duration, error) {
	st := w.container(c.Name)
	if st.State == RunningNow {
		ks, err := w.p.runtime.status(ctx, string(st.ID))
		switch {
		case isGone(err):
			w.exited(c, lost)
		case err != nil:
			return 0, err
		case ks.Exit != nil:
			w.exited(c, *ks.Exit)
		default:
			again, err := w.look(ctx, spec, c, &st)
			if err != nil || !again {
				return idle, err
			}
		}
		st = w.container(c.Name)
	}
	if st.State == Terminated {
		policy := policyOf(spec, c)
		w.mu.Lock()
		_, asked := w.restarts[c.Name]
		delete(w.restarts, c.Name)
		w.mu.Unlock()
		if policy == RestartNever || policy == RestartOnFailure && st.ExitCode == 0 || st.Init && !c.Sidecar() && st.ExitCode == 0 {
			return idle, nil
		}
		if !asked || st.Image == c.Image {
			if wait := w.backOff(c, &st); wait > 0 {
				return wait, nil
			}
		}
	}
	if wait := w.waiting("start/" + c.Name); wait > 0 {
		return wait, nil
	}
	if err := w.startContainer(ctx, spec, c); err != nil {
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		return w.startFailed(ctx, c, err), nil
	}
	w.succeeded("start/" + c.Name)
	return idle, nil
}

// look does what a running container needs: its hook if that has not ended, its probes,
// and its end where it is to start again, which it then says.
func (w *worker) look(ctx context.Context, spec *Spec, c *Container, st *ContainerStatus) (again bool, err error) {
	w.mu.Lock()
	grace, restart := w.restarts[c.Name]
	w.mu.Unlock()
	if st.Image != c.Image {
		w.note(c.Name, false, "Killing", "the container's image changed; it is started again")
		grace, restart = spec.TerminationGrace, true
		w.restart(c, grace)
	}
	if restart {
		return true, w.stopContainer(ctx, c, grace)
	}
	if st.HookPending { // a daemon before us began it, or was about to
		return false, w.postStart(ctx, spec, c, st.ID)
	}
	w.ensureProbes(spec, c, st.ID)
	return false, nil
}

// restart has the container's present incarnation ended, and another started if its
// policy says so.
func (w *worker) restart(c *Container, grace time.Duration) {
	w.mu.Lock()
	w.restarts[c.Name] = grace
	w.mu.Unlock()
	w.poke()
}

func (s *ContainerStatus) termination() *Termination {
	if s.Reason == "CrashLoopBackOff" && s.Last != nil {
		return s.Last
	}
	return &Termination{s.ID, s.Reason, s.Message, s.ExitCode, s.Signal, s.StartedAt, s.FinishedAt}
}

// startFailed says why a container could not be started, and takes away what there is of it and
// of the incarnation before. One that could only not be asked for may run: the next start goes on
// with it.
func (w *worker) startFailed(ctx context.Context, c *Container, err error) time.Duration {
	st := w.container(c.Name)
	if st.State != Waiting || !errors.Is(err, errs.Unavailable) {
		if st.ID != "" {
			if rerr := w.removeContainer(ctx, st.ID); rerr != nil {
				w.p.log.Error("what is left of a container could not be removed", "container", st.ID, "error", rerr)
			}
		}
		st.ID = ""
	}
	reason := "CreateContainerError"
	var se *startError
	if errors.As(err, &se) {
		reason = se.reason
	}
	if reason == "ErrImagePull" {
		if w.container(c.Name).Reason == "ErrImagePull" || w.container(c.Name).Reason == "ImagePullBackOff" {
			reason = "ImagePullBackOff"
		}
	}
	w.note(c.Name, true, "Failed", err.Error())
	w.updateContainer(c.Name, func(s *ContainerStatus) {
		if s.State == Terminated {
			s.Last = s.termination()
		}
		s.State, s.Reason, s.Message, s.ID = Waiting, reason, err.Error(), st.ID
	})
	return w.later("start/"+c.Name, 2*time.Second, backOffMost)
}

// startError is a failure with Kubernetes' word for it.
type startError struct {
	reason string
	err    error
}

func (e *startError) Error() string { return e.err.Error() }
func (e *startError) Unwrap() error { return e.err }
