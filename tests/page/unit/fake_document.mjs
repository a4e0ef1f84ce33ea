// As much of a document as the markdown renderer uses, and nothing that could read HTML: what is
// not here (innerHTML, insertAdjacentHTML, document.write) throws.

const strict = (target) =>
  new Proxy(target, {
    get(object, name) {
      if (name in object || typeof name === "symbol") return Reflect.get(object, name, object);
      throw new Error(`the renderer reads ${String(name)}`);
    },
    set(object, name, value) {
      if (!["className", "textContent", "type"].includes(name))
        throw new Error(`the renderer sets ${String(name)}`);
      return Reflect.set(object, name, value, object);
    },
  });

class FakeElement {
  tag;
  attributes = {};
  childNodes = [];
  className = "";
  type = "";
  ownerDocument = null;

  constructor(tag, document) {
    this.tag = tag;
    this.ownerDocument = document;
  }
  append(...children) {
    this.childNodes.push(...children);
  }
  setAttribute(name, value) {
    this.attributes[name] = value;
  }
  addEventListener() {}
  get lastChild() {
    const last = this.childNodes.at(-1);
    return { remove: () => this.childNodes.splice(this.childNodes.indexOf(last), 1) };
  }
  set textContent(text) {
    this.childNodes = [{ text }];
  }
  get textContent() {
    return this.childNodes.map((child) => child.text ?? child.textContent).join("");
  }
}

export function fakeDocument() {
  const document = {
    made: [], // every element, in order
    createElement(tag) {
      const made = new FakeElement(tag, document);
      document.made.push(made);
      return made;
    },
    createTextNode: (text) => ({ text }),
  };
  return document;
}

// The node as a string, for comparison: tags, the attributes named in `attributes`, text.
export function shape(node, attributes = ["href", "start"]) {
  if (node.text !== undefined) return node.text;
  const kept = attributes
    .filter((name) => name in node.attributes)
    .map((name) => ` ${name}=${node.attributes[name]}`);
  return `<${node.tag}${kept.join("")}>${node.childNodes.map((child) => shape(child, attributes)).join("")}</${node.tag}>`;
}

// The same, in which elements allow only what the renderer is meant to touch.
export const strictDocument = () => {
  const inner = fakeDocument();
  return {
    inner,
    createElement: (tag) => strict(inner.createElement(tag)),
    createTextNode: inner.createTextNode,
  };
};
