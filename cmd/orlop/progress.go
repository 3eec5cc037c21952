package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	orlopv1 "github.com/orlop-io/orlop/api/orlop/v1"
	"golang.org/x/term"
)

// progress shows how layers come in: bars that move on a terminal, a line for each
// change of state elsewhere.
type progress struct {
	w        io.Writer
	terminal bool
	width    int

	layers []*layerProgress // by index
	drawn  int              // lines on the terminal
	last   time.Time
}

type layerProgress struct {
	*orlopv1.LayerProgress
	begin time.Time
	from  int64 // bytes that were there at begin
}

func newProgress(w io.Writer) *progress {
	p := &progress{w: w, width: 80}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		p.terminal = true
		if width, _, err := term.GetSize(int(f.Fd())); err == nil && width > 0 {
			p.width = width
		}
	}
	return p
}

func (p *progress) update(m *orlopv1.LayerProgress) {
	i := slices.IndexFunc(p.layers, func(l *layerProgress) bool { return l.Index == m.Index })
	if i < 0 {
		i = len(p.layers)
		p.layers = append(p.layers, &layerProgress{LayerProgress: &orlopv1.LayerProgress{Index: m.Index}})
	}
	l := p.layers[i]
	changed := l.State != m.State
	if m.State == "downloading" && changed {
		l.begin, l.from = now(), m.DoneBytes
	}
	l.LayerProgress = m
	slices.SortFunc(p.layers, func(a, b *layerProgress) int { return cmp.Compare(a.Index, b.Index) })
	switch {
	case p.terminal:
		if changed || now().Sub(p.last) >= 100*time.Millisecond {
			p.draw()
		}
	case changed && m.State != "waiting":
		fmt.Fprintln(p.w, p.line(l, false))
	}
}

// end leaves the last state on the terminal.
func (p *progress) end() {
	if p.terminal && len(p.layers) > 0 {
		p.draw()
	}
}

func (p *progress) draw() {
	var b strings.Builder
	if p.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", p.drawn)
	}
	for _, l := range p.layers {
		line := []rune(p.line(l, true))
		fmt.Fprintf(&b, "\r%s\x1b[K\n", string(line[:min(len(line), p.width-1)]))
	}
	io.WriteString(p.w, b.String())
	p.drawn, p.last = len(p.layers), now()
}

func (p *progress) line(l *layerProgress, bar bool) string {
	s := fmt.Sprintf("layer %d/%d  %-12s  ", l.Index+1, max(l.Count, l.Index+1), clean(shortID(l.Layer)))
	var bytes string
	switch {
	case l.TotalBytes > 0 && l.DoneBytes < l.TotalBytes && l.State != "done" && l.State != "already here":
		bytes = fmt.Sprintf("%s of %s", size(l.DoneBytes), size(l.TotalBytes))
	case l.TotalBytes > 0:
		bytes = size(l.TotalBytes)
	case l.DoneBytes > 0:
		bytes = size(l.DoneBytes)
	}
	if !bar {
		return strings.TrimRight(fmt.Sprintf("%s%-12s  %s", s, clean(l.State), bytes), " ")
	}
	if l.State == "downloading" {
		const width = 20
		full := 0
		if l.TotalBytes > 0 {
			full = int(min(l.DoneBytes*width/l.TotalBytes, width))
		}
		s += fmt.Sprintf("[%s%s]  %s", strings.Repeat("=", full), strings.Repeat(" ", width-full), bytes)
		if d := now().Sub(l.begin); d > 200*time.Millisecond && l.DoneBytes > l.from {
			s += fmt.Sprintf("  %s/s", size(int64(float64(l.DoneBytes-l.from)/d.Seconds())))
		}
		return s
	}
	return strings.TrimRight(fmt.Sprintf("%s%-22s  %s", s, clean(l.State), bytes), " ")
}
