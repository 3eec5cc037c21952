package cri

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/image"
	"github.com/orlop-io/orlop/internal/pod"
)

func TestCgroupParent(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "/kubepods/besteffort/podx": "/kubepods/besteffort/podx", "/a/../b//c": "/b/c",
		"kubepods.slice":                       "/kubepods.slice",
		"kubepods-besteffort-pod1_2.slice":     "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1_2.slice",
		"kubepods/x":                           "!",
		"../x.slice":                           "!",
		"no-slice":                             "!",
		"/kubepods.slice/kubepods-burst.slice": "/kubepods.slice/kubepods-burst.slice",
	} {
		got, err := cgroupParent(in)
		if want == "!" {
			if !errors.Is(err, errs.Invalid) {
				t.Errorf("%q: %q, %v; want an error", in, got, err)
			}
		} else if got != want || err != nil {
			t.Errorf("%q: %q, %v; want %q", in, got, err, want)
		}
	}
}

func TestSignalName(t *testing.T) {
	for in, want := range map[v1.Signal]string{
		v1.Signal_SIGNAL_SIGTERM: "SIGTERM", v1.Signal_SIGNAL_SIGUSR1: "SIGUSR1", v1.Signal_SIGNAL_SIGRTMIN: "34", v1.Signal_SIGNAL_SIGRTMINPLUS3: "37",
		v1.Signal_SIGNAL_SIGRTMINPLUS15: "49", v1.Signal_SIGNAL_SIGRTMAXMINUS14: "50", v1.Signal_SIGNAL_SIGRTMAXMINUS1: "63", v1.Signal_SIGNAL_SIGRTMAX: "64",
	} {
		if got := signalName(in); got != want {
			t.Errorf("%s: %q, want %q", in, got, want)
		}
	}
}

func TestProfiles(t *testing.T) {
	profile := func(kind v1.SecurityProfile_ProfileType, ref string) *v1.SecurityProfile {
		return &v1.SecurityProfile{ProfileType: kind, LocalhostRef: ref}
	}
	for name, tt := range map[string]struct {
		p    *v1.SecurityProfile
		old  string
		want pod.SecurityProfile // "": an error
	}{
		"nothing":            {nil, "", pod.SecurityProfile{Type: "Unconfined"}},
		"old default":        {nil, "runtime/default", pod.SecurityProfile{Type: "RuntimeDefault"}},
		"old file":           {nil, "localhost//p.json", pod.SecurityProfile{Type: "File", Path: "/p.json"}},
		"old nonsense":       {nil, "nonsense", pod.SecurityProfile{}},
		"default":            {profile(v1.SecurityProfile_RuntimeDefault, ""), "unconfined", pod.SecurityProfile{Type: "RuntimeDefault"}},
		"unconfined":         {profile(v1.SecurityProfile_Unconfined, ""), "runtime/default", pod.SecurityProfile{Type: "Unconfined"}},
		"file":               {profile(v1.SecurityProfile_Localhost, "localhost//p.json"), "", pod.SecurityProfile{Type: "File", Path: "/p.json"}},
		"file not by a path": {profile(v1.SecurityProfile_Localhost, "p.json"), "", pod.SecurityProfile{}},
	} {
		got, err := seccompProfile(tt.p, tt.old)
		if tt.want.Type == "" {
			if !errors.Is(err, errs.Invalid) {
				t.Errorf("%s: %v, %v", name, got, err)
			}
		} else if err != nil || *got != tt.want {
			t.Errorf("%s: %v, %v; want %v", name, got, err, tt.want)
		}
	}
	if p, err := appArmorProfile(nil, "localhost/mine"); err != nil || p.Type != "Localhost" || p.Path != "mine" {
		t.Errorf("AppArmor: %v, %v", p, err)
	}
	if _, err := appArmorProfile(nil, "nonsense"); !errors.Is(err, errs.Invalid) {
		t.Errorf("AppArmor: %v", err)
	}
}

func TestLimits(t *testing.T) {
	if limits(nil) != nil {
		t.Error("limits of nothing")
	}
	in := &v1.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 512, MemoryLimitInBytes: 64 << 20, CpusetCpus: "0-1", OomScoreAdj: 7,
		HugepageLimits: []*v1.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}}, Unified: map[string]string{"memory.high": "1000"}}
	out := encodeLimits(limits(in), 7)
	in.MemorySwapLimitInBytes = in.MemoryLimitInBytes // memory and swap together
	if out.String() != in.String() {
		t.Errorf("there and back: %v instead of %v", out, in)
	}
	if l := limits(&v1.LinuxContainerResources{}); l.CPU != nil || l.Memory != nil {
		t.Errorf("what is not said is set: %v", l)
	}
}

func TestCredentials(t *testing.T) {
	auth := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	for name, tt := range map[string]struct {
		in   *v1.AuthConfig
		want *image.Auth
		bad  bool
	}{
		"none":      {nil, nil, false},
		"empty":     {&v1.AuthConfig{}, nil, false},
		"plain":     {&v1.AuthConfig{Username: "u", Password: "p:w"}, &image.Auth{Username: "u", Password: "p:w"}, false},
		"encoded":   {&v1.AuthConfig{Auth: auth("u:p:w\x00")}, &image.Auth{Username: "u", Password: "p:w"}, false},
		"no colon":  {&v1.AuthConfig{Auth: auth("u")}, nil, true},
		"no base64": {&v1.AuthConfig{Auth: "***"}, nil, true},
		"token":     {&v1.AuthConfig{RegistryToken: "t"}, &image.Auth{RegistryToken: "t"}, false},
	} {
		got, err := credentials(tt.in)
		if (err != nil) != tt.bad || !tt.bad && (got == nil) != (tt.want == nil) || got != nil && *got != *tt.want {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

func TestNamed(t *testing.T) {
	for _, tt := range []struct {
		id, want string
		is       bool
	}{{"0123456789", "", true}, {"0123456789", "0123456789", true}, {"0123456789", "0123", true}, {"0123456789", "012", false}, {"0123456789", "123", false}, {"0123", "01234", false}} {
		if named(tt.id, tt.want) != tt.is {
			t.Errorf("%q for %q", tt.id, tt.want)
		}
	}
}

func TestCPURate(t *testing.T) {
	var c cpuRates
	now := time.Now()
	if c.rate("a", now, time.Second) != nil {
		t.Error("a rate from one point")
	}
	if r := c.rate("a", now.Add(2*time.Second), 2*time.Second); r.GetValue() != 500_000_000 {
		t.Errorf("half a CPU is %v", r)
	}
	if c.rate("a", now.Add(3*time.Second), 0) != nil {
		t.Error("a rate of a counter that began anew")
	}
}

// Kubelet knows a refused image by the beginning of a message that has no code.
func TestRefusedImage(t *testing.T) {
	err := encodeError(fmt.Errorf("pull x: %w", errs.As(errs.PermissionDenied, &image.Refusal{})))
	st, ok := status.FromError(err)
	if !ok || st.Code() != codes.Unknown || !strings.HasPrefix(st.Message(), "SignatureValidationFailed: pull x") {
		t.Errorf("%v", err)
	}
	if st, _ := status.FromError(encodeError(errs.New(errs.PermissionDenied, "no"))); st.Code() != codes.PermissionDenied {
		t.Errorf("another denial: %v", st)
	}
}
