package pod

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/store"
)

// idlePods are pods whose workers do not run: what is recorded is all that happens.
func idlePods(t *testing.T, change ...func(*Options)) *Pods {
	t.Helper()
	dir := t.TempDir()
	db, err := store.Open(filepath.Join(dir, "state.db"), store.Volatile)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	o := Options{Root: dir, Run: dir, Durable: db, Volatile: db, CgroupParent: "/none", Log: slog.New(slog.DiscardHandler)}
	for _, fn := range change {
		fn(&o)
	}
	p, err := Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func simple(name string, change ...func(*Spec)) Spec {
	s := Spec{Key: Key{"default", name}, RestartPolicy: RestartAlways, TerminationGrace: 30 * time.Second,
		Containers: []Container{{Name: "main", Image: "localhost/a:1", PullPolicy: PullIfNotPresent}}}
	for _, c := range change {
		c(&s)
	}
	return s
}

func TestApply(t *testing.T) {
	ctx := context.Background()
	for _, tt := range []struct {
		name   string
		change func(*Spec)
		want   Change
		field  string // of the error
	}{
		{"the same", func(s *Spec) {}, ChangeUnchanged, ""},
		{"empty instead of none", func(s *Spec) { s.Labels = map[string]string{} }, ChangeUnchanged, ""},
		{"labels", func(s *Spec) { s.Labels = map[string]string{"a": "b"} }, ChangeUpdated, ""},
		{"image", func(s *Spec) { s.Containers[0].Image = "localhost/a:2" }, ChangeUpdated, ""},
		{"grace", func(s *Spec) { s.TerminationGrace = time.Second }, ChangeUpdated, ""},
		{"deadline", func(s *Spec) { s.ActiveDeadline = time.Minute }, ChangeUpdated, ""},
		{"command", func(s *Spec) { s.Containers[0].Command = []string{"x"} }, "", "containers"},
		{"another container", func(s *Spec) { s.Containers = append(s.Containers, Container{Name: "b"}) }, "", "containers"},
		{"network", func(s *Spec) { s.HostNetwork = true }, "", "hostNetwork"},
		{"policy", func(s *Spec) { s.RestartPolicy = RestartNever }, "", "restartPolicy"},
		{"volumes", func(s *Spec) { s.Volumes = []Volume{{Name: "v"}} }, "", "volumes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := idlePods(t)
			if c, err := p.Apply(ctx, simple("a")); err != nil || c != ChangeCreated {
				t.Fatalf("%s, %v", c, err)
			}
			first, _ := p.Get(ctx, Key{"default", "a"})
			c, err := p.Apply(ctx, simple("a", tt.change))
			if tt.field != "" {
				if !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), ": "+tt.field+" cannot be changed") {
					t.Errorf("%v", err)
				}
			} else if err != nil || c != tt.want {
				t.Errorf("%s, %v", c, err)
			}
			now, err := p.Get(ctx, Key{"default", "a"})
			if err != nil || now.ID != first.ID {
				t.Errorf("%+v, %v", now, err)
			}
			if m, err := p.manifests.Get("default/a"); err != nil || canonical(m.Spec) != canonical(now.Spec) {
				t.Errorf("what is recorded is not what is: %v, %v", m.Spec, err)
			}
		})
	}
}

func TestApplyHostPorts(t *testing.T) {
	ctx := context.Background()
	port := func(n uint16, proto, ip string) func(*Spec) {
		return func(s *Spec) {
			a, _ := netip.ParseAddr(ip)
			s.Containers[0].Ports = []Port{{Port: 80, HostPort: n, Protocol: proto, HostIP: a}}
		}
	}
	for _, tt := range []struct {
		name string
		a, b func(*Spec)
		bad  bool
	}{
		{"same", port(80, "TCP", ""), port(80, "TCP", ""), true},
		{"other port", port(80, "TCP", ""), port(81, "TCP", ""), false},
		{"other protocol", port(80, "TCP", ""), port(80, "UDP", ""), false},
		{"other address", port(80, "TCP", "192.0.2.1"), port(80, "TCP", "192.0.2.2"), false},
		{"every address and one", port(80, "TCP", "0.0.0.0"), port(80, "TCP", "192.0.2.2"), true},
		{"none", port(0, "TCP", ""), port(0, "TCP", ""), false},
	} {
		p := idlePods(t)
		if _, err := p.Apply(ctx, simple("a", tt.a)); err != nil {
			t.Fatal(err)
		}
		if _, err := p.Apply(ctx, simple("b", tt.b)); (err != nil) != tt.bad || tt.bad && (!errors.Is(err, errs.InUse) || !strings.Contains(err.Error(), "default/a")) {
			t.Errorf("%s: %v", tt.name, err)
		}
		// A pod that has ended holds its port no more.
		w := p.workers[Key{"default", "a"}]
		w.m.Done = &Pod{}
		if _, err := p.Apply(ctx, simple("c", tt.a)); err != nil && !strings.Contains(err.Error(), "default/b") {
			t.Errorf("%s, after the first has ended: %v", tt.name, err)
		}
	}
}

// Who deletes again may shorten the grace, never prolong it.
func TestDeleteGrace(t *testing.T) {
	ctx := context.Background()
	s := func(n int) *time.Duration { d := time.Duration(n) * time.Second; return &d }
	for _, tt := range []struct {
		name  string
		asked []*time.Duration
		want  time.Duration
	}{
		{"the pod's own", []*time.Duration{nil}, 30 * time.Second},
		{"given", []*time.Duration{s(5)}, 5 * time.Second},
		{"longer than its own", []*time.Duration{s(60)}, 60 * time.Second},
		{"shorter later", []*time.Duration{nil, s(5)}, 5 * time.Second},
		{"longer later", []*time.Duration{nil, s(60)}, 30 * time.Second},
		{"longer than given", []*time.Duration{s(5), s(20)}, 5 * time.Second},
		{"again", []*time.Duration{s(5), nil}, 5 * time.Second},
		{"at once", []*time.Duration{nil, s(0)}, 0},
	} {
		p := idlePods(t)
		if _, err := p.Apply(ctx, simple("a")); err != nil {
			t.Fatal(err)
		}
		var at time.Time
		for _, g := range tt.asked {
			if err := p.Delete(ctx, Key{"default", "a"}, DeleteOptions{Grace: g}); err != nil {
				t.Fatal(err)
			}
			m, err := p.manifests.Get("default/a")
			if err != nil || !at.IsZero() && !m.DeletedAt.Equal(at) {
				t.Errorf("%s: deleted at %s, was %s: %v", tt.name, m.DeletedAt, at, err)
			}
			at = m.DeletedAt
		}
		if m, _ := p.manifests.Get("default/a"); m.grace() != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, m.grace(), tt.want)
		}
		if _, err := p.Apply(ctx, simple("a")); !errors.Is(err, errs.FailedPrecondition) {
			t.Errorf("%s: applied while it is being deleted: %v", tt.name, err)
		}
	}
	if err := idlePods(t).Delete(ctx, Key{"default", "a"}, DeleteOptions{}); !errors.Is(err, errs.NotFound) {
		t.Errorf("%v", err)
	}
}

// A change of configuration concerns the pods that show it.
func TestConfigChanged(t *testing.T) {
	ctx := context.Background()
	p := idlePods(t)
	with := func(v Volume) func(*Spec) { return func(s *Spec) { v.Name = "v"; s.Volumes = []Volume{v} } }
	for name, v := range map[string]Volume{
		"map": {ConfigMap: &FileSource{Name: "conf"}}, "secret": {Secret: &FileSource{Name: "conf"}},
		"projected": {Projected: &Projected{Sources: []ProjectedSource{{Secret: &FileSource{Name: "x"}}, {ConfigMap: &FileSource{Name: "conf"}}}}},
		"other":     {ConfigMap: &FileSource{Name: "other"}}, "empty": {EmptyDir: &EmptyDir{}},
	} {
		if _, err := p.Apply(ctx, simple(name, with(v))); err != nil {
			t.Fatal(err)
		}
	}
	elsewhere := simple("map", with(Volume{ConfigMap: &FileSource{Name: "conf"}}))
	elsewhere.Namespace = "elsewhere"
	if _, err := p.Apply(ctx, elsewhere); err != nil {
		t.Fatal(err)
	}
	stale := func() (names []string) {
		for _, w := range p.workers {
			if w.stale {
				names = append(names, w.key.String())
			}
			w.stale = false
		}
		return names
	}
	apply := func(c Config, want Change, pods int) {
		t.Helper()
		c.Namespace, c.Name = "default", "conf"
		got, err := p.ApplyConfig(ctx, c)
		if s := stale(); err != nil || got != want || len(s) != pods {
			t.Errorf("%s, %v; stale: %v", got, err, s)
		}
	}
	data := func(s string) map[string][]byte { return map[string][]byte{"k": []byte(s)} }
	apply(Config{Data: data("1")}, ChangeCreated, 2)
	apply(Config{Data: data("1")}, ChangeUnchanged, 0)
	apply(Config{Data: data("2")}, ChangeUpdated, 2)
	apply(Config{Secret: true, Type: "Opaque", Data: data("1")}, ChangeCreated, 1)
	apply(Config{Data: data("2"), Immutable: true}, ChangeUpdated, 2)
	if _, err := p.ApplyConfig(ctx, Config{Namespace: "default", Name: "conf", Data: data("3")}); !errors.Is(err, errs.Invalid) {
		t.Errorf("immutable: %v", err)
	}
	if _, err := p.ApplyConfig(ctx, Config{Namespace: "default", Name: "conf", Secret: true, Type: "kubernetes.io/tls"}); !errors.Is(err, errs.Invalid) {
		t.Errorf("another type: %v", err)
	}
}

func TestDockerCredentials(t *testing.T) {
	for name, tt := range map[string]struct{ conf, host, user, password, err string }{
		"plain":       {`{"auths":{"reg.example:5000":{"username":"u","password":"p"}}}`, "reg.example:5000", "u", "p", ""},
		"auth":        {`{"auths":{"https://reg.example/v1/":{"auth":"dTpwOnE="}}}`, "reg.example", "u", "p:q", ""},
		"docker hub":  {`{"auths":{"https://index.docker.io/v1/":{"auth":"dTpw"}}}`, "docker.io", "u", "p", ""},
		"not base64":  {`{"auths":{"reg.example":{"auth":"%"}}}`, "", "", "", "auth of reg.example"},
		"not JSON":    {`{`, "", "", "", "secret default/s"},
		"another key": {``, "", "", "", "no key .dockerconfigjson"},
	} {
		c := Config{Namespace: "default", Name: "s", Data: map[string][]byte{".dockerconfigjson": []byte(tt.conf)}}
		if tt.conf == "" {
			c.Data = nil
		}
		got := map[string]Credential{}
		err := dockerCredentials(c, got)
		if tt.err != "" {
			if !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), tt.err) || strings.Contains(err.Error(), "dTpw") {
				t.Errorf("%s: %v", name, err)
			}
		} else if err != nil || got[tt.host] != (Credential{tt.user, tt.password}) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}
