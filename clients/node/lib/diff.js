"use strict";

const { isDeepStrictEqual } = require("node:util");

/** Returns the JSON text of each value of an object, without `undefined` and functions. */
function snapshot(values, isHidden = () => false) {
  const texts = new Map();
  for (const key of Object.keys(values)) {
    if (isHidden(key)) continue;
    let text;
    try {
      text = JSON.stringify(values[key]);
    } catch (cause) {
      throw new TypeError(`session value "${key}" is not JSON: ${cause.message}`, { cause });
    }
    if (text !== undefined) texts.set(key, wellFormed(text));
  }
  return texts;
}

/** Replaces halves of surrogate pairs, which no other language's JSON accepts. */
function wellFormed(text) {
  if (!text.includes("\\ud")) return text;
  return text.replace(/\\(?:ud[89a-f][\da-f]{2}|.)/g, (escape) => (escape.startsWith("\\ud") ? "\\ufffd" : escape));
}

/**
 * Returns the members of a patch that changes one snapshot into another.
 *
 * A list that has grown at its end is appended to, and members of an object are merged, so that parallel requests
 * that change the same value lose nothing.
 */
function difference(before, after) {
  const patch = {};
  for (const [key, text] of after) {
    const old = before.get(key);
    if (old === text) continue;
    const [member, change] = compare(old === undefined ? undefined : JSON.parse(old), JSON.parse(text));
    // Without a prototype, because a key can be `__proto__`.
    if (member) (patch[member] ??= Object.create(null))[key] = change;
  }
  const removed = [...before.keys()].filter((key) => !after.has(key));
  if (removed.length > 0) patch.remove = removed.sort();
  return patch;
}

function compare(old, now) {
  if (Array.isArray(now) && (old === undefined || Array.isArray(old))) {
    const start = old ?? [];
    const isLonger = now.length > start.length && isDeepStrictEqual(now.slice(0, start.length), start);
    if (isLonger) return ["append", now.slice(start.length)];
  } else if (isMergeable(now) && (old === undefined || isMergeable(old))) {
    const merge = mergeOf(old ?? {}, now);
    if (merge && Object.keys(merge).length > 0) return ["merge", merge];
  }
  return isDeepStrictEqual(old, now) ? [] : ["set", now];
}

/** Returns the RFC 7396 merge of one object into another, or undefined if it would have to store a null. */
function mergeOf(old, now) {
  const merge = Object.create(null);
  for (const key of Object.keys(now)) {
    const before = Object.hasOwn(old, key) ? old[key] : undefined;
    if (isDeepStrictEqual(before, now[key])) continue;
    const isNested = isObject(before) && isObject(now[key]);
    const change = isNested ? mergeOf(before, now[key]) : now[key];
    if (change === undefined || (!isNested && hasNull(change))) return undefined;
    merge[key] = change;
  }
  for (const key of Object.keys(old)) if (!Object.hasOwn(now, key)) merge[key] = null;
  return merge;
}

function hasNull(value) {
  return value === null || (typeof value === "object" && Object.values(value).some(hasNull));
}

function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** Objects that stand for a value of another language, such as `{"$cloakroom": …}` or Flask's `{" t": […]}`, are one. */
function isMergeable(value) {
  if (!isObject(value)) return false;
  const keys = Object.keys(value);
  return !(keys.length === 1 && /^(?: |\$cloakroom$)/.test(keys[0]));
}

/** Returns whether no value is worth a session: `null`, `[]` and `{}` are not. */
function isEmpty(texts) {
  return [...texts.values()].every((text) => text === "null" || text === "[]" || text === "{}");
}

/** Escapes what Node would send in Latin-1, or refuse in a header. */
function ascii(json) {
  return json.replace(/[\u007f-\uffff]/g, (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

/**
 * Tags objects that other languages would take for values of theirs, e.g. for a serialized PHP object. Only a value as a
 * whole is read as one, so objects within it stay plain. Values of other languages that have not changed stay, too.
 */
function tagged(texts, loaded) {
  for (const [key, text] of texts) {
    if (!text.startsWith("{") || !text.includes('"$cloakroom"')) continue;
    const value = JSON.parse(text);
    const isKept = loaded.get(key) === text && !isTagged(value);
    if (Object.hasOwn(value, "$cloakroom") && !isKept) texts.set(key, JSON.stringify({ $cloakroom: { json: value } }));
  }
  return texts;
}

/** Returns values without the tags of plain objects. */
function untagged(values) {
  const plain = Object.create(null);
  for (const key of Object.keys(values)) plain[key] = untag(values[key]);
  return plain;
}

function untag(value) {
  return isTagged(value) ? value.$cloakroom.json : value;
}

function isTagged(value) {
  if (!isObject(value) || Object.keys(value).length !== 1) return false;
  return isObject(value.$cloakroom) && Object.hasOwn(value.$cloakroom, "json");
}

module.exports = { ascii, difference, isEmpty, snapshot, tagged, untag, untagged };
