package trace_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/orlop-io/orlop/internal/base/trace"
)

const sampled = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

func TestDecode(t *testing.T) {
	for _, tt := range []struct {
		text        string
		ok, sampled bool
	}{
		{sampled, true, true},
		{"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00", true, false},
		{"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-ff", true, true},
		{"01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", true, true},
		{"01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more", true, true},
		{"01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01more", false, false},
		{"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more", false, false},
		{"ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", false, false},
		{"00-00000000000000000000000000000000-b7ad6b7169203331-01", false, false},
		{"00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01", false, false},
		{"00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01", false, false},
		{"00-0af7651916cd43dd8448eb211c80319x-b7ad6b7169203331-01", false, false},
		{"00_0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", false, false},
		{sampled[:54], false, false},
		{"", false, false},
	} {
		id, ok := trace.Parent{Traceparent: tt.text}.Decode()
		if ok != tt.ok || id.Sampled != tt.sampled {
			t.Errorf("%q: %v %v, want %v %v", tt.text, ok, id.Sampled, tt.ok, tt.sampled)
		}
		if ok && strings.HasPrefix(tt.text, "00-") && tt.text[53] == '0' && id.Encode() != tt.text {
			t.Errorf("%q encodes as %q", tt.text, id.Encode())
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(sampled)
	f.Add("01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x")
	f.Fuzz(func(t *testing.T, text string) {
		id, ok := trace.Parent{Traceparent: text}.Decode()
		if !ok {
			return
		}
		again, ok := trace.Parent{Traceparent: id.Encode()}.Decode()
		if !ok || again != id {
			t.Errorf("%q: %v is read back as %v", text, id, again)
		}
	})
}

// Where nobody traces, code that may be traced costs next to nothing.
func TestOff(t *testing.T) {
	ctx := context.Background()
	err := errors.New("no")
	if n := testing.AllocsPerRun(100, func() {
		ctx, span := trace.Start(ctx, "step")
		span.Set("key", "value")
		_, below := trace.Root(ctx, "step")
		below.End(&err)
		span.Replay(nil)
		span.End(nil)
		if span.Parent() != (trace.Parent{}) {
			t.Error("a span that is not there has a name")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	for _, p := range []string{"", "rubbish", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"} {
		if _, r := trace.Record(ctx, "op", trace.Parent{Traceparent: p}); r != nil || r.Timings(nil) != nil {
			t.Errorf("%q is recorded", p)
		}
	}
}

func TestRecord(t *testing.T) {
	begin := time.Now()
	ctx, r := trace.Record(context.Background(), "op", trace.Parent{Traceparent: sampled})
	one, a := trace.Start(ctx, "a")
	_, b := trace.Start(one, "b")
	b.Set("key", strings.Repeat("é", 1000))
	err := errors.New("broken")
	b.End(&err)
	a.End(nil)
	_, c := trace.Start(ctx, "c") // still under way
	list := r.Timings(errors.New("in all"))
	c.End(nil) // too late, and harmless
	_, late := trace.Start(ctx, "late")
	late.End(nil)
	if len(list) != 4 || r.Timings(nil) != nil {
		t.Fatalf("%+v", list)
	}
	for i, want := range []trace.Timing{{Name: "op", Parent: -1, Err: "in all"}, {Name: "a", Parent: 0}, {Name: "b", Parent: 1, Err: "broken"}, {Name: "c", Parent: 0}} {
		got := list[i]
		if got.Name != want.Name || got.Parent != want.Parent || got.Err != want.Err || got.Begin < begin.UnixNano() || got.End < got.Begin || got.End > time.Now().UnixNano() {
			t.Errorf("%d: %+v", i, got)
		}
	}
	if v := list[2].Attrs["key"]; len(v) > 300 || !strings.HasPrefix(v, "éé") || strings.ToValidUTF8(v, "") != v {
		t.Errorf("a long value is kept as %q", v)
	}
	if a.Parent().Traceparent != sampled {
		t.Errorf("a recorded span names %q", a.Parent().Traceparent)
	}
}

// However much happens, an answer stays small.
func TestRecordIsBounded(t *testing.T) {
	ctx, r := trace.Record(context.Background(), "op", trace.Parent{Traceparent: sampled})
	for range 1000 {
		below, span := trace.Start(ctx, "step")
		_, further := trace.Start(below, "further")
		further.End(nil)
		span.End(nil)
	}
	raw, err := json.Marshal(r.Timings(nil))
	if err != nil || len(raw) > 16<<10 {
		t.Errorf("%d bytes, %v", len(raw), err)
	}
}

// What a recorder has recorded is the same elsewhere; what is malformed is left out.
func TestReplay(t *testing.T) {
	at := time.Now().UnixNano()
	list := []trace.Timing{
		{Name: "op", Parent: -1, Begin: at, End: at + 100, Attrs: map[string]string{"k": "v"}},
		{Name: "a", Parent: 0, Begin: at + 1, End: at + 50, Err: "broken"},
		{Name: "itself", Parent: 2, Begin: at, End: at},
		{Name: "below itself", Parent: 2, Begin: at, End: at},
		{Name: "nobody", Parent: -7, Begin: at, End: at},
		{Name: "later", Parent: 99, Begin: at, End: at},
		{Name: "backwards", Parent: 0, Begin: at, End: at - 1},
		{Name: "b", Parent: 1, Begin: at + 2, End: at + 3},
	}
	ctx, r := trace.Record(context.Background(), "call", trace.Parent{Traceparent: sampled})
	_, span := trace.Start(ctx, "span")
	span.Replay(list)
	span.End(nil)
	var got []string
	for _, s := range r.Timings(nil)[2:] {
		got = append(got, fmt.Sprint(s.Name, " ", s.Parent, " ", s.Begin-at, " ", s.End-at, " ", s.Err, s.Attrs["k"]))
	}
	want := []string{"op 1 0 100 v", "a 2 1 50 broken", "b 3 2 3 "}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestHandler(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(trace.Handler(slog.NewTextHandler(&out, nil))).With("domain", "pod").WithGroup("g")
	log.InfoContext(context.Background(), "plain", "k", 1)
	if strings.Contains(out.String(), "trace_id") {
		t.Errorf("no trace, and yet: %s", out.String())
	}
	ctx, _ := trace.Record(context.Background(), "op", trace.Parent{Traceparent: sampled})
	log.InfoContext(ctx, "traced", "k", 1)
	if !strings.Contains(out.String(), "trace_id=0af7651916cd43dd8448eb211c80319c") || !strings.Contains(out.String(), "domain=pod") {
		t.Errorf("%s", out.String())
	}
}
