// Cases to look at: slices and a rendering by NiiVue, of volumes that lie in the page.
(() => {
  "use strict";
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = id => document.getElementById(id);
  const every = selector => [...document.querySelectorAll(selector)];
  const LAYERS = ["image", "reference", "prediction", "difference"]; // the last on top
  const DARK = [0.055, 0.067, 0.086, 1];
  const DIFFERENCE = "clinseg-difference";
  const isScaled = layer => layer === "image" || layer === "difference";
  const LOOK = {
    isRadiologicalConvention: true, sagittalNoseLeft: true, backColor: DARK, loadingText: "", logLevel: "error",
    dragAndDropEnabled: false, crosshairColor: [0.95, 0.96, 0.97, 0.6], fontColor: [0.95, 0.96, 0.97, 1],
    viewModeHotKey: "", clipPlaneHotKey: "", cycleClipPlaneHotKey: "", keyDebounceTime: 0,
  };
  const state = {view: null, slices: null, rendering: null, images: {}, mm: null, turn: 0};
  window.clinsegViewer = state; // what tests and curious people look at

  const isShown = layer => layer in state.view.layers && toggle(layer).checked;
  const toggle = layer => document.querySelector(`[data-layer=${layer}]`);
  // The map that is rendered: the uppermost that is shown.
  const rendered = () => ["difference", "prediction", "reference"].find(isShown);

  function colourMap(entries) {
    const map = {R: [0], G: [0], B: [0], A: [0], I: [0], labels: [""]};
    for (const {value, name, colour} of entries) {
      [map.R, map.G, map.B].forEach((channel, n) => channel.push(parseInt(colour.slice(1 + 2 * n, 3 + 2 * n), 16)));
      map.A.push(255);
      map.I.push(value);
      map.labels.push(name);
    }
    return map;
  }

  // As steps of an ordinary scale: a label's colours fade at its borders, and a difference is all border.
  function differenceScale() {
    const scale = {R: [], G: [], B: [], A: [], I: []}, map = colourMap(data.differences), num = map.I.length;
    map.I.forEach((value, n) => {
      for (const end of [Math.ceil(256 * n / num), Math.ceil(256 * (n + 1) / num) - 1]) {
        for (const channel of "RGBA") scale[channel].push(map[channel][n]);
        scale.I.push(end);
      }
    });
    return scale;
  }

  const entriesOf = layer => layer === "difference"
    ? data.differences
    : state.view.labels.map((label, n) => ({value: n + 1, ...label}));

  async function load(layer) {
    const [low, high] = layer === "image" ? state.view.window : [0, layer === "difference" ? data.differences.length : 1];
    const image = await niivue.NVImage.loadFromBase64({
      base64: state.view.layers[layer], name: `${layer}.nii.gz`, cal_min: low, cal_max: high,
      colormap: layer === "difference" ? DIFFERENCE : "gray",
    });
    if (!isScaled(layer)) image.setColormapLabel(colourMap(entriesOf(layer)));
    check(image, layer);
    return image;
  }

  // What NiiVue has read must lie where this page says that it lies.
  function check(image, layer) {
    const {affine, shape} = state.view;
    const isSame = shape.every((size, axis) => size === image.hdr.dims[axis + 1]) &&
      affine.every((row, r) => row.every((number, c) =>
        Math.abs(number - image.hdr.affine[r][c]) <= 1e-4 * Math.max(1, Math.abs(number))));
    if (!isSame) throw new Error(`the ${layer} was not read where it lies`);
  }

  async function start() {
    state.slices = new niivue.Niivue({
      ...LOOK, crosshairWidth: 0.3, crosshairWidthUnit: "percent", showAllOrientationMarkers: true,
      multiplanarShowRender: niivue.SHOW_RENDER.NEVER, tileMargin: 4, fontMinPx: 13,
    });
    state.rendering = new niivue.Niivue({...LOOK, crosshairWidth: 0, isOrientCube: true, forceDevicePixelRatio: 2,
      isNearestInterpolation: true, isOrientationTextVisible: false});
    for (const viewer of [state.slices, state.rendering]) viewer.addColormap(DIFFERENCE, differenceScale());
    await state.slices.attachToCanvas(byId("slices"));
    await state.rendering.attachToCanvas(byId("rendering"));
    state.slices.onLocationChange = tell;
    state.slices.setSliceType(state.slices.sliceTypeMultiplanar);
    state.rendering.setSliceType(state.rendering.sliceTypeRender);
    state.rendering.setScale(1.35);
  }

  async function show(number) {
    const turn = ++state.turn;
    const view = data.views[number];
    mark(number);
    state.view = view;
    const images = {};
    for (const layer of LAYERS) if (layer in view.layers) images[layer] = await load(layer);
    if (turn !== state.turn) return; // another case was chosen meanwhile
    state.images = images;
    for (const layer of LAYERS) toggle(layer).disabled = !(layer in view.layers);
    byId("focus").hidden = !("difference" in view.layers);
    byId("extent").textContent = view.note;
    state.slices.volumes = [];
    for (const layer of LAYERS) if (layer in images) state.slices.addVolume(images[layer]);
    state.rendering.volumes = [];
    refresh();
    go(view.focus);
  }

  function mark(number) {
    for (const button of every(".choice [data-view]"))
      button.setAttribute("aria-pressed", String(Number(button.dataset.view) === number));
    for (const figure of every("[data-slices]")) figure.hidden = Number(figure.dataset.slices) !== number;
  }

  function refresh() {
    const opacity = byId("opacity").value / 100;
    for (const [layer, volume] of Object.entries(state.images)) {
      volume.opacity = !isShown(layer) ? 0 : isScaled(layer) ? 1 : opacity;
    }
    state.slices.updateGLVolume();
    render(rendered());
    legend();
  }

  function render(layer) {
    byId("rendered").textContent = layer ? layer[0].toUpperCase() + layer.slice(1) : "";
    state.rendering.volumes = [];
    if (layer) {
      const volume = state.images[layer].clone();
      // A copy has neither colours nor their range.
      if (isScaled(layer)) Object.assign(volume, {colormap: DIFFERENCE, cal_min: 0, cal_max: data.differences.length});
      else volume.setColormapLabel(colourMap(entriesOf(layer)));
      volume.opacity = 1;
      // Shading needs surfaces, and a difference is often one voxel thin. Without a volume this returns at once.
      state.rendering.setVolumeRenderIllumination(layer === "difference" ? 0 : 0.75);
      state.rendering.addVolume(volume);
    }
    state.rendering.drawScene();
  }

  function legend() {
    const entries = [];
    if (isShown("reference") || isShown("prediction")) entries.push(...entriesOf("prediction"));
    if (isShown("difference")) entries.push(...data.differences);
    byId("legend").replaceChildren(...entries.map(({name, colour}) => {
      const entry = document.createElement("li"), swatch = document.createElement("span");
      swatch.className = "swatch";
      swatch.style.background = colour;
      entry.append(swatch, name);
      return entry;
    }));
  }

  function go(mm) {
    const {slices} = state;
    slices.scene.crosshairPos = slices.mm2frac(mm);
    slices.drawScene();
    slices.createOnLocationChange();
  }

  const direction = (mm, positive, negative) => `${mm < 0 ? negative : positive} ${Math.abs(mm).toFixed(1)}`;

  // Says where the crosshair is: in the patient, in the file, and what is there.
  function tell(location) {
    const [x, y, z] = location.mm;
    state.mm = [x, y, z];
    const voxel = state.view.toVoxel.map(row => Math.round(row[0] * x + row[1] * y + row[2] * z + row[3]));
    const parts = [
      `${direction(x, "R", "L")}  ${direction(y, "A", "P")}  ${direction(z, "S", "I")} mm`,
      `voxel ${voxel.join(", ")}`,
    ];
    state.slices.volumes.forEach((volume, n) => {
      const layer = LAYERS.find(name => state.images[name] === volume);
      const value = location.values[n].value;
      if (layer === "image") parts.push(`image ${Number(value.toFixed(2))}`);
      else if (layer !== "difference") parts.push(`${layer} ${value ? state.view.labels[value - 1].name : "–"}`);
    });
    byId("place").textContent = parts.join("   ·   ");
  }

  const STEPS = {
    ArrowLeft: [1, 0, 0], ArrowRight: [-1, 0, 0], ArrowUp: [0, 1, 0], ArrowDown: [0, -1, 0],
    PageUp: [0, 0, 1], PageDown: [0, 0, -1],
  };

  function step(event) {
    const directions = STEPS[event.key];
    if (!directions) return;
    event.preventDefault();
    const {affine} = state.view;
    const spacing = Math.min(...[0, 1, 2].map(axis => Math.hypot(...[0, 1, 2].map(row => affine[row][axis]))));
    go(state.mm.map((mm, axis) => mm + spacing * directions[axis]));
  }

  function give_up(error) {
    const notice = byId("no-viewer");
    if (error) notice.textContent = `The interactive view failed (${error.message}); the slices below stand in for it.`;
    notice.hidden = false;
    byId("viewer").hidden = true;
    state.failed = true;
  }

  function listen() {
    for (const input of every("[data-layer]")) input.addEventListener("change", refresh);
    byId("opacity").addEventListener("input", refresh);
    byId("focus").addEventListener("click", () => go(state.view.focus));
    byId("slices").addEventListener("keydown", step);
  }

  async function main() {
    const isAble = document.createElement("canvas").getContext("webgl2") !== null;
    for (const button of every("[data-view]"))
      button.addEventListener("click", () => {
        const number = Number(button.dataset.view);
        if (state.failed) mark(number);
        else show(number).catch(give_up);
      });
    mark(0);
    if (!isAble) return give_up();
    byId("viewer").hidden = false;
    listen();
    try {
      await start();
      await show(0);
      state.isReady = true;
    } catch (error) {
      give_up(error);
    }
  }

  main();
})();
