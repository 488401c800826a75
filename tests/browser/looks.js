// What the tests of pages ask of a page, in the page itself.
const looks = (() => {
  const shown = (node) => node.checkVisibility({ visibilityProperty: true, opacityProperty: true });
  const named = (node) =>
    `${node.tagName.toLowerCase()}.${[...node.classList].join(".")}: ${(
      node.textContent || node.src || ""
    )
      .trim()
      .slice(0, 60)}`;

  // Colours: sRGB channels and opacity, laid over each other, and their contrast as WCAG defines it.
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (color) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    const [red, green, blue, alpha] = canvas.getImageData(0, 0, 1, 1).data;
    return [red, green, blue, alpha / 255];
  };
  const over = ([r, g, b, a], below) => [
    ...[r, g, b].map((value, place) => value * a + below[place] * (1 - a)),
    1,
  ];
  const ground = (node) => {
    const layers = [];
    for (let at = node; at; at = at.parentElement) {
      layers.push(rgba(getComputedStyle(at).backgroundColor));
    }
    return layers.reverse().reduce((below, layer) => over(layer, below), [255, 255, 255, 1]);
  };
  const luminance = (color) => {
    const [r, g, b] = color.slice(0, 3).map((value) => {
      const part = value / 255;
      return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (one, other) => {
    const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const paint = (node, style) =>
    node instanceof SVGElement && style.fill !== "none" ? style.fill : style.color;

  const texts = () => {
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    const found = new Set();
    while (walker.nextNode()) {
      const node = walker.currentNode.parentElement;
      if (walker.currentNode.data.trim() && !node.closest("script, style, noscript, mjx-assistive-mml")) {
        found.add(node);
      }
    }
    return [...found].filter((node) => shown(node) && !node.closest(":disabled, [aria-hidden=true]"));
  };

  return {
    brokenImages: () =>
      [...document.images]
        .filter((image) => shown(image))
        .filter((image) => !image.complete || !image.naturalWidth)
        .map((image) => image.src),

    picturesWithoutText: () => [
      ...[...document.images].filter((image) => !image.alt.trim()).map((image) => image.src),
      ...[...document.querySelectorAll("article svg")]
        .filter((drawing) => shown(drawing) && !drawing.closest("[aria-hidden=true], a, button"))
        .filter((drawing) => drawing.getAttribute("role") !== "img" || !drawing.ariaLabel?.trim())
        .map(named),
    ],

    formulasNotDrawn: () => [
      ...[...document.querySelectorAll(".math")]
        .filter((formula) => !formula.querySelector("mjx-container"))
        .map(named),
      ...[...document.querySelectorAll("mjx-merror, [data-mjx-error]")].map(named),
    ],

    faintTexts: (small, large) =>
      texts()
        .map((node) => {
          const style = getComputedStyle(node);
          const size = parseFloat(style.fontSize);
          const big = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
          const below = ground(node);
          const ratio = contrast(over(rgba(paint(node, style)), below), below);
          return { ratio, wanted: big ? large : small, text: named(node) };
        })
        .filter(({ ratio, wanted }) => ratio < wanted - 0.005)
        .map(({ ratio, text }) => `${ratio.toFixed(2)} ${text}`),

    // Charts are drawn on white, in dark ink: where the page is dark they need a ground of theirs.
    figuresWithoutGround: () =>
      [...document.querySelectorAll("article img")]
        .filter((image) => shown(image) && !image.src.endsWith(".svg"))
        .filter((image) => contrast(ground(image), [34, 34, 34]) < 7)
        .map((image) => image.src),

    tooWide: () => {
      const width = document.documentElement.clientWidth;
      if (document.scrollingElement.scrollWidth <= width) return [];
      const framed = (node) => {
        for (let at = node.parentElement; at !== document.body; at = at.parentElement) {
          if (getComputedStyle(at).overflowX !== "visible") return true;
        }
        return false;
      };
      return [...document.querySelectorAll("body *")]
        .filter((node) => shown(node) && !framed(node))
        .filter((node) => node.getBoundingClientRect().right > width + 1)
        .map(named)
        .slice(0, 8);
    },
  };
})();
