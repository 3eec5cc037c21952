// Package nft keeps one nftables table as its owner wants it, without the nft(8) tool
// (16 ms a call). A table is described as a whole; it is compared with the kernel's, and
// replaced in one transaction if it differs, so that packets see the old rules or the new.
// Elements of sets and maps come and go singly. Other tables are never changed.
package nft

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// Table is a table of the inet family: its chains see IPv4 and IPv6.
type Table struct {
	Name   string
	Sets   []Set
	Chains []Chain
}

// Set is a set, or with Data a map.
type Set struct {
	Name string
	// Key is the type of the keys; several are concatenated, each padded to 4 bytes.
	Key  []nftables.SetDatatype
	Data []nftables.SetDatatype
	// Interval sets hold ranges: an element begins one, an element with End is the first
	// beyond it.
	Interval bool
	Elements []Element
}

// Element of a set or map, in network byte order, parts padded to 4 bytes.
type Element struct {
	Key, Value []byte
	End        bool
}

// Chain is a list of rules; with a Hook the kernel calls it, else other chains jump to it.
type Chain struct {
	Name     string
	Type     nftables.ChainType
	Hook     *nftables.ChainHook
	Priority int32
	Rules    []Rule
}

// Rule is a list of expressions; Comment is for people who list the table.
type Rule struct {
	Comment string
	Exprs   []expr.Any
}

// name is what the rule carries in the kernel: its comment, and a digest of what it says.
func (r *Rule) name() []byte {
	h := sha256.New()
	for _, e := range r.Exprs {
		fmt.Fprintf(h, "%T %+v\n", e, e)
	}
	text := r.Comment + " [" + hex.EncodeToString(h.Sum(nil)[:4]) + "]"
	return userdata.AppendString(nil, userdata.TypeComment, text)
}

func (t *Table) handle() *nftables.Table {
	return &nftables.Table{Name: t.Name, Family: nftables.TableFamilyINet}
}

func (s *Set) handle(t *nftables.Table) *nftables.Set {
	set := &nftables.Set{
		Table: t, Name: s.Name, Interval: s.Interval, IsMap: s.Data != nil,
		Concatenation: len(s.Key) > 1,
		KeyType:       nftables.MustConcatSetType(s.Key...),
	}
	if len(s.Key) == 1 {
		set.KeyType = s.Key[0]
		if s.Key[0].Name == TypeName.Name {
			set.KeyByteOrder = binaryutil.NativeEndian
		}
	}
	switch len(s.Data) {
	case 0:
	case 1:
		set.DataType = s.Data[0]
	default:
		set.DataType = nftables.MustConcatSetType(s.Data...)
	}
	return set
}

// Conn is a connection to the kernel's nftables, in the network namespace of the thread that
// dialled. It is kept: closing one waits until the kernel has disposed of what was deleted
// last (a grace period of RCU, 8–20 ms). It is safe for concurrent use; transactions are serial.
type Conn struct {
	mu sync.Mutex
	c  *nftables.Conn
}

// Dial connects.
func Dial() (*Conn, error) {
	c, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return nil, fmt.Errorf("connect to nftables: %w", err)
	}
	return &Conn{c: c}, nil
}

// Close ends the connection.
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.c.CloseLasting()
}

// flush carries out what was prepared. The caller holds c.mu.
func (c *Conn) flush(what string) error {
	err := c.c.Flush()
	if err == nil {
		return nil
	}
	// Answers that nobody read may be left: begin anew.
	c.c.CloseLasting()
	fresh, derr := nftables.New(nftables.AsLasting())
	if derr != nil {
		return errors.Join(err, derr)
	}
	c.c = fresh
	return failure(what, err)
}

// chunk is how many elements go into one message: an attribute holds 64 KiB.
const chunk = 256

func elements(es []Element) []nftables.SetElement {
	var out []nftables.SetElement
	for _, e := range es {
		out = append(out, nftables.SetElement{Key: e.Key, Val: e.Value, IntervalEnd: e.End})
	}
	return out
}

// Replace puts the table in place of the one of its name, if there is one, in one transaction.
func (n *Conn) Replace(t Table) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	c := n.c
	h := t.handle()
	c.AddTable(h) // so that deleting cannot fail
	c.DelTable(h)
	c.AddTable(h)
	for _, s := range t.Sets {
		set := s.handle(h)
		if err := c.AddSet(set, nil); err != nil {
			return fmt.Errorf("nftables set %s: %w", s.Name, err)
		}
		for part := range slices.Chunk(elements(s.Elements), chunk) {
			if err := c.SetAddElements(set, part); err != nil {
				return fmt.Errorf("nftables set %s: %w", s.Name, err)
			}
		}
	}
	var chains []*nftables.Chain
	for _, ch := range t.Chains {
		chain := &nftables.Chain{Table: h, Name: ch.Name}
		if ch.Hook != nil {
			chain.Type, chain.Hooknum, chain.Priority = ch.Type, ch.Hook, nftables.ChainPriorityRef(nftables.ChainPriority(ch.Priority))
		}
		chains = append(chains, c.AddChain(chain))
	}
	for i, ch := range t.Chains { // after all chains: rules jump to them
		for _, r := range ch.Rules {
			c.AddRule(&nftables.Rule{Table: h, Chain: chains[i], Exprs: r.Exprs, UserData: r.name()})
		}
	}
	return n.flush(fmt.Sprintf("write nftables table inet %s", t.Name))
}

// Change adds and removes elements of sets and maps by set name, in one transaction.
// Nothing happens if one to be removed is not there or one to be added is there with
// another value; an equal one may be added again.
func (n *Conn) Change(t Table, add, remove map[string][]Element) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	c := n.c
	h := t.handle()
	for _, s := range t.Sets {
		set := s.handle(h)
		for part := range slices.Chunk(elements(remove[s.Name]), chunk) {
			if err := c.SetDeleteElements(set, part); err != nil {
				return err
			}
		}
		for part := range slices.Chunk(elements(add[s.Name]), chunk) {
			if err := c.SetAddElements(set, part); err != nil {
				return err
			}
		}
	}
	return n.flush(fmt.Sprintf("change nftables table inet %s", t.Name))
}

// Delete removes the table; one that is not there is no error.
func (n *Conn) Delete(name string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	c := n.c
	h := &nftables.Table{Name: name, Family: nftables.TableFamilyINet}
	c.AddTable(h)
	c.DelTable(h)
	return n.flush("delete nftables table inet " + name)
}

// Exists tells whether there is a table of that name.
func (n *Conn) Exists(name string) (bool, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.exists(name)
}

func (n *Conn) exists(name string) (bool, error) {
	ts, err := n.c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return false, failure("list nftables tables", err)
	}
	return slices.ContainsFunc(ts, func(t *nftables.Table) bool { return t.Name == name }), nil
}

// Differs says in what the kernel's table is not t, or "".
func (n *Conn) Differs(t Table) (string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if ok, err := n.exists(t.Name); err != nil || !ok {
		return "the table is missing", err
	}
	c := n.c
	h := t.handle()
	all, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return "", failure("list nftables chains", err)
	}
	have := map[string]*nftables.Chain{}
	for _, ch := range all {
		if ch.Table.Name == t.Name {
			have[ch.Name] = ch
		}
	}
	if len(have) != len(t.Chains) {
		return fmt.Sprintf("%d chains instead of %d", len(have), len(t.Chains)), nil
	}
	for _, ch := range t.Chains {
		has := have[ch.Name]
		if has == nil || (has.Hooknum == nil) != (ch.Hook == nil) ||
			ch.Hook != nil && (*has.Hooknum != *ch.Hook || has.Type != ch.Type || int32(*has.Priority) != ch.Priority) {
			return "chain " + ch.Name, nil
		}
		rules, err := c.GetRules(h, has)
		if err != nil {
			return "", failure("list nftables rules", err)
		}
		if !slices.EqualFunc(rules, ch.Rules, func(a *nftables.Rule, b Rule) bool { return bytes.Equal(a.UserData, b.name()) }) {
			return "rules of chain " + ch.Name, nil
		}
	}
	for _, s := range t.Sets {
		es, err := c.GetSetElements(s.handle(h))
		if err != nil {
			return "set " + s.Name, nil // most likely it is not there
		}
		if !s.holds(es) {
			return "elements of " + s.Name, nil
		}
	}
	return "", nil
}

// holds tells whether the kernel's elements are the set's. An interval set may hold an end
// at the lowest key, which says nothing.
func (s *Set) holds(es []nftables.SetElement) bool {
	type id struct {
		key string
		end bool
	}
	want := map[id]string{}
	for _, e := range s.Elements {
		want[id{string(e.Key), e.End}] = string(e.Value)
	}
	n := 0
	for _, e := range es {
		v, ok := want[id{string(e.Key), e.IntervalEnd}]
		if !ok && e.IntervalEnd && len(bytes.Trim(e.Key, "\x00")) == 0 {
			continue
		}
		if !ok || v != string(e.Val) {
			return false
		}
		n++
	}
	return n == len(want)
}

func failure(what string, err error) error {
	switch {
	case errors.Is(err, unix.EPERM):
		return errs.New(errs.PermissionDenied, "%s: %w", what, err)
	case errors.Is(err, unix.ENOENT):
		return errs.New(errs.NotFound, "%s: %w", what, err)
	case errors.Is(err, unix.EEXIST):
		return errs.New(errs.AlreadyExists, "%s: %w", what, err)
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EAFNOSUPPORT):
		return errs.New(errs.Unsupported, "%s: this kernel lacks a part of nftables: %w", what, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}
