package criu

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
)

// Type is what CRIU is asked for: criu_req_type.
type Type uint64

// The requests.
const (
	Dump    Type = 1
	Restore Type = 2
	PreDump Type = 4

	notify       Type = 6
	featureCheck Type = 9
	version      Type = 10
)

func (t Type) String() string {
	switch t {
	case Dump:
		return "dump"
	case Restore:
		return "restore"
	case PreDump:
		return "pre-dump"
	case notify:
		return "notification"
	case featureCheck:
		return "check of features"
	case version:
		return "question for its version"
	}
	return fmt.Sprintf("request %d", uint64(t))
}

// CgroupMode is how CRIU treats control groups: criu_cg_mode.
type CgroupMode uint64

// The modes.
const (
	CgroupsIgnore CgroupMode = 0
	CgroupsSoft   CgroupMode = 3
	CgroupsFull   CgroupMode = 4
	CgroupsStrict CgroupMode = 5
)

// Pair is a name that CRIU keeps for something of outside, with what it is.
type Pair struct{ Key, Value string }

// InheritFD is a descriptor of CRIU's that stands for what was outside when it was saved.
type InheritFD struct {
	Key string
	FD  int // CRIU's: see FirstExtra
}

// Options are criu_opts, those that are used.
type Options struct {
	Images, Work    *os.File // directories; without Work the log is in Images
	LogFile         string   // a name in it
	PID             int
	Root            string
	ParentImages    string // relative to Images
	TrackMemory     bool
	LeaveRunning    bool
	ExtUnixSockets  bool
	TCPEstablished  bool
	TCPSkipInFlight bool
	TCPClose        bool
	EvasiveDevices  bool
	ShellJob        bool
	FileLocks       bool
	LinkRemap       bool
	AutoDedup       bool
	LazyPages       bool
	OrphanPtsMaster bool // tells of terminals whose masters are outside
	Sibling         bool // what is restored becomes our child, and not CRIU's
	Cgroups         CgroupMode
	CgroupRoots     []Pair // by controller: where the saved groups' top is
	FreezeCgroup    string // the directory of a group that is frozen meanwhile
	EmptyNamespaces uint32 // CLONE_NEWNET: one is made, but what is in it is not saved
	Mounts          []Pair // of outside: by mount point the name; when restoring, by name the source
	External        []string
	Inherit         []InheritFD
	JoinNamespaces  []Pair // kind and path
	PageServer      string // address
	PagePort        int
	LSMProfile      string
	LSMContext      string
	ConfigFile      string
}

// message is a protobuf message that is being written (protobuf.dev/programming-guides/encoding).
// Zero values are left out.
type message []byte

// The types of what follows a field's number.
const (
	varint  = 0
	fixed64 = 1
	bytes   = 2
	fixed32 = 5
)

func (m *message) tag(field, kind uint64) { *m = binary.AppendUvarint(*m, field<<3|kind) }

func (m *message) number(field, v uint64) {
	m.tag(field, varint)
	*m = binary.AppendUvarint(*m, v)
}

func (m *message) message(field uint64, sub message) {
	m.tag(field, bytes)
	*m = append(binary.AppendUvarint(*m, uint64(len(sub))), sub...)
}

// field is one of a message's, by its number in rpc.proto.
type field struct {
	number uint64
	value  any
}

// always is a number that is written although it is zero.
type always uint64

// write makes a message of fields.
func write(list ...field) (m message) {
	for _, f := range list {
		switch v := f.value.(type) {
		case bool:
			if v {
				m.number(f.number, 1)
			}
		case int:
			if v != 0 {
				m.number(f.number, uint64(v))
			}
		case always:
			m.number(f.number, uint64(v))
		case *os.File:
			if v != nil {
				m.number(f.number, uint64(v.Fd()))
			}
		case string:
			if v != "" {
				m.message(f.number, message(v))
			}
		case message:
			if len(v) > 0 {
				m.message(f.number, v)
			}
		case []string:
			for _, s := range v {
				m.message(f.number, message(s))
			}
		case []Pair:
			for _, p := range v {
				m.message(f.number, write(field{1, p.Key}, field{2, p.Value}))
			}
		case []InheritFD:
			for _, i := range v {
				m.message(f.number, write(field{1, i.Key}, field{2, always(i.FD)}))
			}
		default:
			panic(fmt.Sprintf("field %d is a %T", f.number, f.value))
		}
	}
	return m
}

// logLevel is that of CRIU's log: 4 is all but what is said in loops.
const logLevel = 4

func (o *Options) encode() message {
	var pages message
	if o.PageServer != "" {
		pages = write(field{1, o.PageServer}, field{2, always(o.PagePort)})
	}
	return write(
		field{1, o.Images},
		field{2, o.PID},
		field{3, o.LeaveRunning},
		field{4, o.ExtUnixSockets},
		field{5, o.TCPEstablished},
		field{6, o.EvasiveDevices},
		field{7, o.ShellJob},
		field{8, o.FileLocks},
		field{9, logLevel},
		field{10, o.LogFile},
		field{11, pages},
		field{12, true}, // notifications
		field{13, o.Root},
		field{14, o.ParentImages},
		field{15, o.TrackMemory},
		field{16, o.AutoDedup},
		field{17, o.Work},
		field{18, o.LinkRemap},
		field{23, o.Mounts},
		field{25, o.CgroupRoots},
		field{26, o.Sibling},
		field{27, o.Inherit},
		field{34, always(o.Cgroups)},
		field{37, o.External},
		field{38, int(o.EmptyNamespaces)},
		field{39, o.JoinNamespaces},
		field{44, o.FreezeCgroup},
		field{46, o.TCPSkipInFlight},
		field{48, o.LazyPages},
		field{50, o.OrphanPtsMaster},
		field{51, o.ConfigFile},
		field{52, o.TCPClose},
		field{53, o.LSMProfile},
		field{63, o.LSMContext},
	)
}

// encode writes a criu_req.
func (r *Request) encode() message {
	var options message
	if r.Options != nil {
		options = r.Options.encode()
	}
	m := write(field{1, always(r.Type)}, field{2, options})
	if r.Type == featureCheck { // also where nothing is asked for
		m.message(5, write(field{1, r.features.MemoryTracking}, field{2, r.features.LazyPages}))
	}
	return m
}

// acknowledge is the criu_req that answers a notification.
func acknowledge(ok bool) message {
	success := always(0)
	if ok {
		success = 1
	}
	return write(field{1, always(notify)}, field{3, success})
}

// response is a criu_resp.
type response struct {
	kind     Type
	success  bool
	pid      int    // of what was restored, or that a notification is about
	script   string // which notification
	errno    int
	message  string
	features Features
	version  Version
}

// parse reads a criu_resp. Fields that are not known are passed over.
func parse(b []byte) (r response, err error) {
	err = fields(b, func(field, n uint64, s []byte) error {
		switch field {
		case 1:
			r.kind = Type(n)
		case 2:
			r.success = n != 0
		case 4: // criu_restore_resp
			return fields(s, func(field, n uint64, _ []byte) error {
				if field == 1 {
					r.pid = int(int32(n))
				}
				return nil
			})
		case 5: // criu_notify
			return fields(s, func(field, n uint64, s []byte) error {
				switch field {
				case 1:
					r.script = string(s)
				case 2:
					r.pid = int(int32(n))
				}
				return nil
			})
		case 7:
			r.errno = int(int32(n))
		case 8: // criu_features
			return fields(s, func(field, n uint64, _ []byte) error {
				switch field {
				case 1:
					r.features.MemoryTracking = n != 0
				case 2:
					r.features.LazyPages = n != 0
				}
				return nil
			})
		case 9:
			r.message = string(s)
		case 10: // criu_version
			return fields(s, func(field, n uint64, _ []byte) error {
				switch n := Version(min(n, 99)); field {
				case 1:
					r.version += n * 10000
				case 2:
					r.version += n * 100
				case 4:
					r.version += n
				}
				return nil
			})
		}
		return nil
	})
	return r, err
}

var errMessage = errors.New("it is not a protobuf message")

// fields calls each with every field of a message: with its number, or with its bytes.
func fields(b []byte, each func(field, n uint64, s []byte) error) error {
	next := func() (uint64, error) {
		v, size := binary.Uvarint(b)
		if size <= 0 {
			return 0, errMessage
		}
		b = b[size:]
		return v, nil
	}
	for len(b) > 0 {
		tag, err := next()
		if err != nil {
			return err
		}
		var n, size uint64
		switch tag & 7 {
		case varint:
			n, err = next()
		case bytes:
			size, err = next()
		case fixed64:
			size = 8
		case fixed32:
			size = 4
		default:
			err = errMessage
		}
		if err == nil && size > uint64(len(b)) || tag>>3 == 0 || tag > math.MaxUint32 {
			err = errMessage
		}
		if err != nil {
			return err
		}
		var s []byte
		if tag&7 == bytes {
			s = b[:size]
		}
		b = b[size:]
		if err := each(tag>>3, n, s); err != nil {
			return err
		}
	}
	return nil
}
