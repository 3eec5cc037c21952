package pod

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/orlop-io/orlop/internal/platform/keeper"
)

// endReason is Kubernetes' word for an end.
func endReason(x keeper.Exit) string {
	switch {
	case x.OOMKilled:
		return "OOMKilled"
	case !x.Known:
		return "ContainerStatusUnknown"
	case x.Code != 0:
		return "Error"
	}
	return "Completed"
}

// exited records the end of the container's present incarnation.
func (w *worker) exited(c *Container, x keeper.Exit) {
	st := w.container(c.Name)
	if st.State != RunningNow {
		return
	}
	w.stopProbe(st.ID)
	w.mu.Lock()
	delete(w.hooked, st.ID)
	w.mu.Unlock()
	reason := endReason(x)
	if x.At.IsZero() {
		x.At = time.Now()
	}
	message := w.terminationMessage(c, &st, x.Code)
	w.updateContainer(c.Name, func(s *ContainerStatus) {
		s.State, s.Reason, s.Message = Terminated, reason, message
		s.Ready, s.Started, s.HookPending, s.PID = false, false, false, 0
		s.ExitCode, s.Signal, s.FinishedAt = x.Code, x.Signal, x.At
	})
}

// What a container may say of its end, and what is taken of its log in place of that
// (Kubernetes' limits).
const (
	maxTerminationMessage = 4096
	maxFallbackBytes      = 2048
	maxFallbackLines      = 80
)

// terminationMessage reads what the container left for whoever asks why it ended, or
// where its policy says so, and it failed without a word, the end of its log.
func (w *worker) terminationMessage(c *Container, st *ContainerStatus, code int) string {
	b := readUpTo(filepath.Join(w.runDir(), "containers", string(st.ID), "termination-log"), maxTerminationMessage)
	if len(b) == 0 && code != 0 && c.TerminationMessagePolicy == "FallbackToLogsOnError" {
		return logTail(w.logPath(c.Name, st.Restarts))
	}
	return string(b)
}

func readUpTo(path string, most int64) []byte {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	b, _ := io.ReadAll(io.LimitReader(f, most))
	return b
}

// logTail returns the last lines of a log in CRI format (TIME STREAM F|P TEXT), at most
// maxFallbackLines and maxFallbackBytes of them.
func logTail(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	const window = 32 << 10 // many short lines, each with its time
	if fi, err := f.Stat(); err == nil && fi.Size() > window {
		f.Seek(-window, io.SeekEnd)
	}
	raw, _ := io.ReadAll(f)
	lines := bytes.SplitAfter(raw, []byte("\n"))
	var text []byte
	for _, l := range lines[max(0, len(lines)-1-maxFallbackLines):] {
		l = bytes.TrimSuffix(l, []byte("\n"))
		fields := bytes.SplitN(l, []byte(" "), 4)
		if len(fields) < 4 { // the line that the window has cut
			continue
		}
		text = append(text, fields[3]...)
		if fields[2][0] == 'F' {
			text = append(text, '\n')
		}
	}
	return strings.ToValidUTF8(string(text[max(0, len(text)-maxFallbackBytes):]), "")
}

func (w *worker) logPath(container string, incarnation int) string {
	return filepath.Join(w.logDir(), container, strconv.Itoa(incarnation)+".log")
}

// dropOldLogs keeps the logs of the present and the two incarnations before.
func (w *worker) dropOldLogs(container string, now int) {
	if now < 2 {
		return
	}
	old, _ := filepath.Glob(w.logPath(container, now-2) + "*")
	for _, f := range old {
		os.Remove(f)
	}
}
