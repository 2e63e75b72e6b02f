package meet

import (
	"bytes"
	"encoding/json"

	"plenum/wire/xmpp"
)

// A JSONMessage is the <json-message/> in a message of a component or a participant.
type JSONMessage struct {
	Room string          // JID, from components
	Data json.RawMessage // an object with a member "type", else clients drop it
}

// ParseJSONMessage reads <json-message/>.
func ParseJSONMessage(e *xmpp.Element) (JSONMessage, error) {
	if !e.Is(NS, "json-message") {
		return JSONMessage{}, malformed("no json-message")
	}
	text := e.Text()
	if len(text) > maxJSONBytes || !json.Valid([]byte(text)) {
		return JSONMessage{}, malformed("json-message")
	}
	return JSONMessage{e.Attr("room"), json.RawMessage(text)}, nil
}

// Element returns <json-message/>. Clients undo HTML's escapes before they parse the JSON, so <, > and & are
// written as JSON's own: text that reads like an escape stays what it is.
func (m JSONMessage) Element() *xmpp.Element {
	var b bytes.Buffer
	json.HTMLEscape(&b, m.Data)
	return xmpp.New(NS, "json-message", "room", m.Room).AddText(b.String())
}

// Type returns the member "type", or the empty string.
func (m JSONMessage) Type() string {
	var v struct{ Type string }
	_ = json.Unmarshal(m.Data, &v) // what is no such object has no type
	return v.Type
}

// RoomMetadata is all metadata of a room: it replaces what was sent before.
type RoomMetadata map[string]json.RawMessage

type jsonMetadata struct {
	Type     string       `json:"type"`
	Metadata RoomMetadata `json:"metadata"`
}

// Message returns the message that carries the metadata of a room. Values must be valid JSON.
func (m RoomMetadata) Message(room string) JSONMessage {
	if m == nil {
		m = RoomMetadata{}
	}
	return JSONMessage{room, json.RawMessage(marshal(jsonMetadata{"room_metadata", m}))}
}

// ParseRoomMetadata returns the metadata in a message.
func ParseRoomMetadata(m JSONMessage) (RoomMetadata, error) {
	var v jsonMetadata
	if json.Unmarshal(m.Data, &v) != nil || v.Type != "room_metadata" || v.Metadata == nil {
		return nil, malformed("room_metadata")
	}
	return v.Metadata, nil
}

// A MetadataChange is a moderator's request to set one key.
type MetadataChange struct {
	Room string // JID
	Key  string
	Data json.RawMessage
}

// ParseMetadataChange reads <room_metadata/>.
func ParseMetadataChange(e *xmpp.Element) (MetadataChange, error) {
	if !e.Is(NS, "room_metadata") {
		return MetadataChange{}, malformed("no room_metadata")
	}
	text := e.Text()
	var v struct {
		Key  string
		Data json.RawMessage
	}
	if len(text) > maxJSONBytes || json.Unmarshal([]byte(text), &v) != nil || v.Key == "" || v.Data == nil {
		return MetadataChange{}, malformed("room_metadata")
	}
	return MetadataChange{e.Attr("room"), v.Key, v.Data}, nil
}

// Element returns <room_metadata/>.
func (m MetadataChange) Element() *xmpp.Element {
	return xmpp.New(NS, "room_metadata", "room", m.Room).AddText(marshal(struct {
		Key  string          `json:"key"`
		Data json.RawMessage `json:"data"`
		Type string          `json:"type"`
	}{m.Key, m.Data, "room_metadata"}))
}
