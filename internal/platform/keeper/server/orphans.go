package server

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// parenthood makes this process the parent of what a runtime's command leaves behind (a
// child subreaper, PR_SET_CHILD_SUBREAPER of prctl(2)), until the returned function is called, by
// when the caller has a descriptor of the process that it wants. It is not one for good: what
// containers in the host's PID namespace orphan is the host's init's. What they do meanwhile, and
// whatever else a runtime leaves, is reaped when it ends.
func (s *Server) parenthood() func() {
	s.births.RLock()
	s.mu.Lock()
	s.adopting++
	if s.adopting == 1 {
		s.subreaper(1)
	}
	s.mu.Unlock()
	return func() {
		s.mu.Lock()
		s.adopting--
		if s.adopting == 0 {
			s.subreaper(0)
			s.orphans.Reset(orphanPause)
		}
		s.mu.Unlock()
		s.births.RUnlock()
	}
}

func (s *Server) subreaper(on uintptr) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, on, 0, 0, 0); err != nil {
		s.log.Error("exit codes of containers of other runtimes may be lost", "error", err)
	}
}

// orphanPause lets a burst of commands pass.
const orphanPause = 200 * time.Millisecond

// adoptOrphans looks for children that nobody here has made, at a moment when none is being made.
func (s *Server) adoptOrphans() {
	if !s.births.TryLock() {
		s.orphans.Reset(orphanPause)
		return
	}
	defer s.births.Unlock()
	s.adoptStrays()
}

// adoptStrays reaps, when they end, the children of this process that are neither containers nor
// commands in them: what runtimes have left, and after an upgrade what the binary before us
// had started by exec in containers, whose clients ask the kernel for the exit code.
func (s *Server) adoptStrays() {
	known := make(map[int]bool)
	for _, st := range s.list() {
		known[st.PID] = true
	}
	s.mu.Lock()
	for _, e := range s.execs {
		known[e.pid] = true
	}
	for pid := range s.strays {
		known[pid] = true
	}
	s.mu.Unlock()
	lists, _ := filepath.Glob("/proc/self/task/*/children")
	for _, list := range lists {
		raw, _ := os.ReadFile(list)
		for _, w := range strings.Fields(string(raw)) {
			pid, _ := strconv.Atoi(w)
			if known[pid] {
				continue
			}
			fd, err := unix.PidfdOpen(pid, 0)
			if err != nil {
				continue
			}
			known[pid] = true
			e := &execProcess{pid: pid, stray: true, done: make(chan struct{}), pidfd: os.NewFile(uintptr(fd), "pidfd")}
			s.mu.Lock()
			s.strays[pid] = struct{}{}
			s.mu.Unlock()
			s.poll.watch(fd, unix.EPOLLIN, func(uint32) { s.execEnded(e) })
		}
	}
}
