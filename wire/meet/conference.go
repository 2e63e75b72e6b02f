package meet

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"plenum/wire/xmpp"
)

// maxProperties limits the properties of one request.
const maxProperties = 64

// A Conference is what a client asks the focus for before it joins a room, and the answer.
type Conference struct {
	Room      string // bare JID
	SessionID string

	// Of a request.
	MachineUID, Token string

	// Of an answer, which is one when FocusJID is set.
	Ready    bool   // the room may be joined
	FocusJID string // clients take an occupant whose JID begins with this and a slash for the focus
	Identity string
	VNode    string // where visitors go

	Properties []Property
}

// ParseConference reads <conference/>. A request without a room is malformed.
func ParseConference(e *xmpp.Element) (Conference, error) {
	if !e.Is(NSFocus, "conference") {
		return Conference{}, malformed("no conference")
	}
	c := Conference{
		Room: e.Attr("room"), SessionID: e.Attr("session-id"), MachineUID: e.Attr("machine-uid"), Token: e.Attr("token"),
		Ready: e.Attr("ready") == "true", FocusJID: e.Attr("focusjid"), Identity: e.Attr("identity"), VNode: e.Attr("vnode"),
	}
	for p := range e.Children {
		if p.Is(NSFocus, "property") && p.Attr("name") != "" {
			c.Properties = append(c.Properties, Property{p.Attr("name"), p.Attr("value")})
		}
	}
	return c, c.check()
}

func (c Conference) check() error {
	if c.Room == "" || len(c.Properties) > maxProperties {
		return malformed("conference")
	}
	return nil
}

// Element returns <conference/>.
func (c Conference) Element() *xmpp.Element {
	e := xmpp.New(NSFocus, "conference", "room", c.Room, "machine-uid", c.MachineUID, "token", c.Token, "session-id", c.SessionID)
	if c.FocusJID != "" {
		e.SetAttr("ready", boolean(c.Ready)).SetAttr("focusjid", c.FocusJID).SetAttr("identity", c.Identity).SetAttr("vnode", c.VNode)
	}
	for _, p := range c.Properties {
		e.Add(xmpp.New(NSFocus, "property", "name", p.Name, "value", p.Value))
	}
	return e
}

// Property returns the value of a property, or the empty string.
func (c Conference) Property(name string) string {
	for _, p := range c.Properties {
		if p.Name == name {
			return p.Value
		}
	}
	return ""
}

// jsonConference is the form of the HTTP request; the token is in a header there.
type jsonConference struct {
	Room       string         `json:"room"`
	Ready      *bool          `json:"ready,omitempty"`
	FocusJID   string         `json:"focusJid,omitempty"`
	MachineUID string         `json:"machineUid,omitempty"`
	SessionID  string         `json:"sessionId,omitempty"`
	Identity   string         `json:"identity,omitempty"`
	VNode      string         `json:"vnode,omitempty"`
	Properties jsonProperties `json:"properties"`
}

// MarshalJSON writes the body of the HTTP form.
func (c Conference) MarshalJSON() ([]byte, error) {
	j := jsonConference{
		Room: c.Room, FocusJID: c.FocusJID, MachineUID: c.MachineUID, SessionID: c.SessionID, Identity: c.Identity, VNode: c.VNode, Properties: c.Properties,
	}
	if c.FocusJID != "" {
		j.Ready = &c.Ready
	}
	return json.Marshal(j)
}

// UnmarshalJSON reads the body of the HTTP form. Its limit on bytes is the reader's.
func (c *Conference) UnmarshalJSON(b []byte) error {
	var j jsonConference
	if err := json.Unmarshal(b, &j); err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	*c = Conference{
		Room: j.Room, SessionID: j.SessionID, MachineUID: j.MachineUID, Ready: j.Ready != nil && *j.Ready, FocusJID: j.FocusJID,
		Identity: j.Identity, VNode: j.VNode, Properties: j.Properties,
	}
	return c.check()
}

// jsonProperties are an object: clients send numbers and booleans as such, servers send strings.
type jsonProperties []Property

func (p jsonProperties) MarshalJSON() ([]byte, error) {
	b := []byte{'{'}
	for i, m := range p {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, marshal(m.Name)...)
		b = append(b, ':')
		b = append(b, marshal(m.Value)...)
	}
	return append(b, '}'), nil
}

func (p *jsonProperties) UnmarshalJSON(b []byte) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	t, err := d.Token()
	if err != nil || t == nil {
		return err
	}
	if t != json.Delim('{') {
		return errors.New("properties are not an object")
	}
	*p = nil
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return err
		}
		value, err := d.Token()
		if err != nil {
			return err
		}
		m := Property{Name: name.(string)}
		switch v := value.(type) {
		case string:
			m.Value = v
		case json.Number:
			m.Value = v.String()
		case bool:
			m.Value = boolean(v)
		case nil:
		default:
			return errors.New("property is not a scalar")
		}
		if m.Name != "" {
			*p = append(*p, m)
		}
	}
	return nil
}
